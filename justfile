# The usual verbs. `just` lists them; each is one command that can be typed by hand.

_list:
    @just --list --unsorted

# All tests that this machine can run; as root and as another user they see different things.
test *ARGS:
    cargo test --workspace {{ ARGS }}

# Formatting, clippy, dependencies.
lint:
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    cargo clippy --workspace --all-targets --all-features -- -D warnings
    RUSTFLAGS="--cfg fuzzing" cargo clippy --manifest-path fuzz/Cargo.toml -- -D warnings
    cargo deny check licenses bans sources

# The documentation, as strictly as CI builds it.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --lib --no-deps --all-features

# The listing of the public API, after a wanted change.
api:
    .ci/public-api >docs/public-api.txt

# Benchmarks, with criterion's arguments.
bench *ARGS:
    cargo bench --bench spawn --bench filter --bench birth --bench populate -- {{ ARGS }}

# The libraries that the bench of spawning compares with, in a program of their own.
bench-peers:
    cargo build --release --manifest-path benches/peers/Cargo.toml

# One fuzz target for a while. Stable Rust will do.
fuzz TARGET SECONDS="60":
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run {{ TARGET }} -- -max_total_time={{ SECONDS }}

# One test binary under a Debian kernel: `just vm v1`, `just vm v2 lib`, `just vm v2 inside memory`.
vm LAYOUT="v2" SUITE="inside" *ARGS:
    #!/bin/bash
    set -euo pipefail
    select=(--test {{ SUITE }})
    [[ {{ SUITE }} != lib ]] || select=(--lib)
    binary=$(RUSTFLAGS="-C target-feature=+crt-static" cargo test --package cofferdam "${select[@]}" --no-run \
        --target x86_64-unknown-linux-gnu --target-dir target/vm --message-format=json |
        python3 .ci/test-binaries | awk -F'\t' '$1 == "test" { print $4 }')
    tools/vm-run -v -l {{ LAYOUT }} -s 256 -m 2048 -- "$binary" --show-output {{ ARGS }}

# Many sandboxes on several threads, with every kind of end: memory, descriptors and the kernel's objects stay as they are.
soak COUNT="100000" THREADS="8":
    COFFERDAM_SOAK={{ COUNT }} COFFERDAM_SOAK_THREADS={{ THREADS }} cargo test --release --test soak -- --nocapture

# What CI runs.
ci:
    bash .ci/run
