//! Embeds the compiled XDP programs, whose path `cargo xtask build` gives in `EVENKEEL_EBPF_OBJECT`.
//!
//! Without it an empty stand-in is embedded, so that `cargo check` and `clippy` need no eBPF tool; the binary then refuses
//! `backend = "xdp"`. `LB_REQUIRE_EBPF=1` makes that an error.

use std::path::PathBuf;
use std::{env, fs, process};

fn main() {
    println!("cargo:rerun-if-env-changed=EVENKEEL_EBPF_OBJECT");
    println!("cargo:rerun-if-env-changed=LB_REQUIRE_EBPF");
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { fail("OUT_DIR is not set") };
    let object = match env::var_os("EVENKEEL_EBPF_OBJECT").map(PathBuf::from) {
        Some(path) => {
            println!("cargo:rerun-if-changed={}", path.display());
            fs::read(&path).unwrap_or_else(|error| fail(&format!("cannot read {}: {error}", path.display())))
        }
        None if env::var_os("LB_REQUIRE_EBPF").is_some_and(|value| value == "1") => {
            fail("LB_REQUIRE_EBPF is set but EVENKEEL_EBPF_OBJECT is not; build with `cargo xtask build`")
        }
        None => {
            println!(
                "cargo:warning=built without the XDP programs: evenkeel will refuse to run; use `cargo xtask build`"
            );
            Vec::new()
        }
    };
    if let Err(error) = fs::write(out.join("evenkeel.bpf.o"), object) {
        fail(&format!("cannot write the embedded object: {error}"));
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    process::exit(1);
}
