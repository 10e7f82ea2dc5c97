# Two commands do everything on a fresh Debian 12 with a Rust toolchain: `make demo` and `make test`.
CARGO ?= cargo
KLPFARM = $(or $(CARGO_TARGET_DIR),target)/release/klpfarm

.PHONY: build demo test bless deps clean

build: deps
	$(CARGO) build --release --locked -p klpfarm

# Installs what is missing, builds, makes the default image, gates the two example patches.
demo: build
	scripts/demo $(KLPFARM)

# Installs what is missing; format, lints, all tests, real machines included.
test: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	scripts/check-arrows
	$(CARGO) test --workspace --locked

# Writes the golden files anew after an intended change of what people read; look at the diff before committing it.
bless:
	SNAPSHOTS=overwrite $(CARGO) test --locked -p klpfarm-model --test schema
	SNAPSHOTS=overwrite $(CARGO) test --locked -p klpfarm-report --lib golden
	SNAPSHOTS=overwrite $(CARGO) test --locked -p klpfarm --test golden

deps:
	@scripts/check-rust
	@scripts/install-deps

clean:
	$(CARGO) clean
	rm -rf out
