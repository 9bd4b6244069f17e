//! Text forms of values in serialised specs and on command lines: sizes (`64m`), file modes (`0022`) and byte strings.
//!
//! In serialised data, a size is a number of bytes or a string that [`size`] parses. A byte string (command, argument,
//! environment) is a string, or an array of bytes if it is not UTF-8. [`InvalidValue`] is the error for a text that
//! cannot be parsed.
//!
//! ```
//! let limits: cofferdam::Limits = serde_json::from_str(r#"{"memory": "64m", "swap": "off", "cores": "0-3"}"#)?;
//! assert_eq!(limits.memory, Some(64 << 20));
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! This module does not decide which values a field accepts: the type of the field does, or the compilation of a plan.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A text is not a valid value of the expected type. The message has the text and what is accepted.
///
/// ```
/// let error = "NOFILE".parse::<cofferdam::Resource>().unwrap_err();
/// assert!(error.to_string().starts_with("\"NOFILE\" is none of as, core, "));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        InvalidValue(message.into())
    }
}

/// Parses a size in bytes: decimal digits and an optional unit, `k`, `m`, `g` or `t`, for powers of 1024. `64m`, `64M`,
/// `64mb` and `64MiB` are the same size.
///
/// # Errors
/// [`InvalidValue`] for any other text, and for a size of 2^64 bytes or more.
///
/// ```
/// assert_eq!(cofferdam::notation::size("64m")?, 64 << 20);
/// assert!(cofferdam::notation::size("1.5g").is_err());
/// # Ok::<(), cofferdam::InvalidValue>(())
/// ```
pub fn size(text: &str) -> Result<u64, InvalidValue> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => u32::MAX,
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !plain || shift == u32::MAX {
        let why = format!("{text:?} is not a size: decimal digits, and k, m, g or t for powers of 1024");
        return Err(InvalidValue::new(why));
    }
    let bytes = digits.parse().ok().and_then(|number: u64| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| InvalidValue::new(format!("{text:?} is 2^64 bytes or more")))
}

/// Parses a file mode or a umask: one to four octal digits (`0022`).
///
/// # Errors
/// [`InvalidValue`] for any other text.
///
/// ```
/// assert_eq!(cofferdam::notation::mode("0022")?, 0o022);
/// # Ok::<(), cofferdam::InvalidValue>(())
/// ```
pub fn mode(text: &str) -> Result<u32, InvalidValue> {
    let octal = (1..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| octal);
    mode.ok_or_else(|| InvalidValue::new(format!("{text:?} is not one to four octal digits")))
}

/// Parses a duration: decimal digits, at most one point, and an optional unit: `ms`, `s` (the default), `m` or `h`.
///
/// # Errors
/// [`InvalidValue`] for any other text, and for a time of 2^64 seconds or more.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(cofferdam::notation::duration("1.5s")?, Duration::from_millis(1500));
/// assert_eq!(cofferdam::notation::duration("90")?, Duration::from_secs(90));
/// # Ok::<(), cofferdam::InvalidValue>(())
/// ```
pub fn duration(text: &str) -> Result<Duration, InvalidValue> {
    let wrong = || InvalidValue::new(format!("{text:?} is not a duration: a number, and ms, s, m or h"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let plain = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.ends_with(|c: char| c.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number = digits.parse::<f64>().ok().filter(|_| plain).ok_or_else(wrong)?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

/// For `with`: an optional [`Duration`].
pub(crate) mod optional_duration {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(time: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        match time {
            None => s.serialize_none(),
            Some(time) => s.collect_str(&format_args!("{}.{:09}s", time.as_secs(), time.subsec_nanos())),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Option<Duration>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds, or a duration such as \"90s\"")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Self::Value, E> {
                Ok(Some(Duration::from_secs(seconds)))
            }

            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Self::Value, E> {
                Duration::try_from_secs_f64(seconds).map(Some).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                duration(text).map(Some).map_err(E::custom)
            }
        }
        d.deserialize_any(Form)
    }
}

/// A size in serde data: a number of bytes, or a string that [`size`] parses.
pub(crate) struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a size such as \"64m\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(Size)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                size(text).map(Size).map_err(E::custom)
            }
        }
        d.deserialize_any(Form)
    }
}

/// For `deserialize_with`: an optional size.
pub(crate) fn optional_size_from<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Size>::deserialize(d)?.map(|Size(bytes)| bytes))
}

/// For `deserialize_with`: sizes by name.
pub(crate) fn sizes_from<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let sizes = BTreeMap::<String, Size>::deserialize(d)?;
    Ok(sizes.into_iter().map(|(name, Size(bytes))| (name, bytes)).collect())
}

/// For `with`: a file mode as a string of octal digits.
pub(crate) mod octal {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(mode: &u32, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{mode:04o}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = u32;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("octal digits in a string, such as \"0022\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<u32, E> {
                mode(text).map_err(E::custom)
            }
        }
        d.deserialize_any(Form)
    }
}

/// A byte of an [`OsString`] that is not UTF-8.
struct Byte(u8);

impl<'de> Deserialize<'de> for Byte {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Byte;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte, 0 to 255; the value itself is one string, and arguments are in args")
            }

            fn visit_u64<E: de::Error>(self, byte: u64) -> Result<Byte, E> {
                let wrong = || E::invalid_value(de::Unexpected::Unsigned(byte), &self);
                u8::try_from(byte).map(Byte).map_err(|_| wrong())
            }
        }
        d.deserialize_any(Form)
    }
}

/// An [`OsString`] in serde data: a string, or an array of bytes if it is not UTF-8.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct OsText(OsString);

impl Serialize for OsText {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        os_string::serialize(&self.0, s)
    }
}

impl<'de> Deserialize<'de> for OsText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        os_string::deserialize(d).map(OsText)
    }
}

/// Serialises bytes as a string of hexadecimal digits, two for each byte.
pub(crate) mod hex {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&Digits(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: From<Vec<u8>>>(d: D) -> Result<T, D::Error> {
        let text = String::deserialize(d)?;
        let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let byte = |[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        bytes
            .filter(|_| rest.is_empty())
            .map(T::from)
            .ok_or_else(|| de::Error::custom("not a string of hexadecimal bytes"))
    }

    struct Digits<'a>(&'a [u8]);

    impl fmt::Display for Digits<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }
}

/// For `with`: an [`OsString`].
pub(crate) mod os_string {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(text: &OsStr, s: S) -> Result<S::Ok, S::Error> {
        match text.to_str() {
            Some(text) => s.serialize_str(text),
            None => s.collect_seq(text.as_bytes()),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<OsString, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = OsString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or an array of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OsString, E> {
                Ok(text.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OsString, A::Error> {
                let mut bytes = Vec::new();
                while let Some(Byte(byte)) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(OsString::from_vec(bytes))
            }
        }
        d.deserialize_any(Form)
    }
}

/// For `with`: a list of [`OsString`]s.
pub(crate) mod os_strings {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(list: &[OsString], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(list.iter().map(|text| OsText(text.clone())))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<OsString>, D::Error> {
        Ok(Vec::<OsText>::deserialize(d)?.into_iter().map(|OsText(text)| text).collect())
    }
}

/// For `with`: [`OsString`]s by name.
pub(crate) mod os_map {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        map: &BTreeMap<OsString, OsString>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.collect_map(map.iter().map(|(key, value)| (OsText(key.clone()), OsText(value.clone()))))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<BTreeMap<OsString, OsString>, D::Error> {
        let map = BTreeMap::<OsText, OsText>::deserialize(d)?;
        Ok(map.into_iter().map(|(OsText(key), OsText(value))| (key, value)).collect())
    }
}

/// Implements serde's traits for structs with `#[serde(remote = "Self")]`. They are deserialised from maps only: the
/// traits that serde derives also take an array, by position, in which no unknown field is noticed. The text says what
/// is expected.
macro_rules! from_maps {
    ($($type:ident: $expected:literal),* $(,)?) => {
        $(crate::notation::from_maps! { @one $type, $expected, untracked })*
    };
    (with_field $($type:ident: $expected:literal),* $(,)?) => {
        $(crate::notation::from_maps! { @one $type, $expected, with_field })*
    };
    (@one $type:ident, $expected:literal, $read:ident) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Form;
                impl<'de> serde::de::Visitor<'de> for Form {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<$type, A::Error> {
                        <$type>::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }
                crate::notation::$read(d, |d| serde::Deserializer::deserialize_map(d, Form))
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                <$type>::serialize(self, s)
            }
        }
    };
}
pub(crate) use from_maps;

/// Deserialises by `read`. A part of a value: the path of the field comes from the value around it.
pub(crate) fn untracked<'de, D, T>(d: D, read: impl FnOnce(D) -> Result<T, D::Error>) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    read(d)
}

/// Deserialises by `read`, and adds the path of the field to its error.
pub(crate) fn with_field<'de, D, T>(
    d: D,
    read: impl for<'a, 'b> FnOnce(serde_path_to_error::Deserializer<'a, 'b, D>) -> Result<T, D::Error>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    let mut track = serde_path_to_error::Track::new();
    read(serde_path_to_error::Deserializer::new(d, &mut track)).map_err(|e| match track.path().to_string() {
        // The text ended inside a value, or the value itself is of a wrong type.
        top if top == "." || top == "?" => e,
        field => de::Error::custom(format!("{field}: {e}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_digits_and_a_unit() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("1k", 1024), ("64M", 64 << 20), ("2GiB", 2 << 30), ("1tb", 1 << 40)]
        {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "k", "1x", "-1", "+1", "1.5g", "99999999999g", "1ib", "1kk", " 1", "1 k", "٣"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, milliseconds) in
            [("90", 90_000), ("1.5", 1500), ("500ms", 500), ("0.5m", 30_000), ("2h", 7_200_000), ("0s", 0)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for text in [
            "",
            "s",
            "-1",
            "+1",
            "1d",
            "1e3",
            "1.",
            ".5",
            "1.5.5",
            " 1",
            "1 s",
            "inf",
            "99999999999999999999h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        let json = r#"{"command": "true", "deadline": "1.5s"}"#;
        let spec: crate::SandboxSpec = serde_json::from_str(json).unwrap();
        assert_eq!(spec.deadline, Some(Duration::from_millis(1500)));
        assert_eq!(
            serde_json::from_str::<crate::SandboxSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(),
            spec
        );
    }

    #[test]
    fn a_mode_is_octal_digits() {
        for (text, bits) in [("0022", 0o022), ("22", 0o022), ("0", 0), ("7777", 0o7777)] {
            assert_eq!(mode(text).unwrap(), bits, "{text}");
        }
        for text in ["", "8", "0o22", "+22", "-1", "00022", " 22"] {
            assert!(mode(text).is_err(), "{text}");
        }
    }
}
