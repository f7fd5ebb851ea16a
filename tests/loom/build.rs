//! Only this package sees `cfg(loom)`; as a compiler flag of all it would rebuild every dependency.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
