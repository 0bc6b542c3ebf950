# `just` lists the recipes. None does more than the command that it shows.

_list:
    @just --list

# All that CI runs: formatting, clippy, documentation, tests
check:
    bash .ci/run

# Formats the code
format:
    cargo fmt --all

# The tests alone
test:
    cargo test --workspace

# The documentation of our crates, in a browser
doc:
    cargo doc --workspace --no-deps --open

# Three nodes in one process: one batch against one operation at a time
demo:
    cargo run --release -- demo
