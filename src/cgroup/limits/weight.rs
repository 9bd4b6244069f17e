//! Conversion of CPU shares (cgroup v1) to CPU weights (v2).

/// Smallest value of `cpu.shares` (the kernel's `MIN_SHARES`).
pub const SHARES_MIN: u64 = 2;

/// Largest value of `cpu.shares` (the kernel's `MAX_SHARES`).
pub const SHARES_MAX: u64 = 262_144;

/// Converts `shares` of v1 to `cpu.weight` of v2 (1 to 10000, 100 by default).
///
/// The curve `10^((l² + 125 l) / 612 - 7/34)` with `l = log2(shares)` maps the minimum, the default and the maximum of
/// shares to those of weights: 2 -> 1, 1024 -> 100, 262144 -> 10000. OCI runtimes use it since 2025. The linear
/// conversion that they used before turned the default of 1024 into 39.
///
/// ```
/// # use cofferdam::cgroup::shares_to_weight;
/// assert_eq!(shares_to_weight(1024), 100);
/// ```
pub fn shares_to_weight(shares: u64) -> u64 {
    if shares <= SHARES_MIN {
        return 1;
    }
    if shares >= SHARES_MAX {
        return 10_000;
    }
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    // Math libraries differ in the last bit, which at 1024 would turn 100 into 101.
    let weight = (10f64.powf(exponent) - 1e-9).ceil();
    (weight as u64).clamp(1, 10_000)
}

/// Clamps `shares` to [`SHARES_MIN`] and [`SHARES_MAX`].
///
/// If shares are MHz and the machine has more of them than the kernel's maximum (`total_mhz` above [`SHARES_MAX`]),
/// they are scaled down first, so that tasks keep their proportions.
///
/// ```
/// # use cofferdam::cgroup::clamp_shares;
/// assert_eq!(clamp_shares(1, None), 2);
/// assert_eq!(clamp_shares(262_144, Some(524_288)), 131_072);
/// ```
pub fn clamp_shares(shares: u64, total_mhz: Option<u64>) -> u64 {
    let scaled = match total_mhz {
        Some(total) if total > SHARES_MAX => u128::from(shares)
            .saturating_mul(u128::from(SHARES_MAX))
            .checked_div(u128::from(total))
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or(SHARES_MAX),
        _ => shares,
    };
    scaled.clamp(SHARES_MIN, SHARES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_to_weights_on_the_oci_curve() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (3, 2),
            (10, 4),
            (50, 10),
            (100, 17),
            (128, 21),
            (200, 29),
            (250, 34),
            (600, 66),
            (1000, 99),
            (1024, 100),
            (1500, 136),
            (2000, 170),
            (4096, 303),
            (8192, 532),
            (20_000, 1112),
            (100_000, 4340),
            (131_072, 5478),
            (262_143, 10_000),
            (262_144, 10_000),
            (262_145, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(shares_to_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn shares_are_scaled_before_they_are_clamped() {
        for (total, shares, expected) in [
            (Some(12_000), 262_144, 262_144),
            (Some(262_144), 262_144, 262_144),
            (Some(262_145), 262_144, 262_143),
            (Some(262_145), 1, 2),
            // The `exec` driver clamps before it scales, and writes 1 here.
            (Some(524_288), 3, 2),
            (None, 0, 2),
            (Some(0), 0, 2),
            (None, u64::MAX, 262_144),
            (Some(u64::MAX), u64::MAX, 262_144),
        ] {
            assert_eq!(clamp_shares(shares, total), expected, "{shares} of {total:?}");
        }
    }
}
