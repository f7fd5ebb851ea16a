//! Lists the shader files, so that they are part of the library and nobody keeps a table of them.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=shaders");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let mut paths = Vec::new();
    collect(&root.join("shaders"), &mut paths);
    paths.sort();
    let mut list = String::from("static FILES: &[ShaderFile] = &[\n");
    let mut seen = HashMap::new();
    for path in &paths {
        let name = path.file_name().expect("a file").to_string_lossy();
        if let Some(other) = seen.insert(name.clone(), path) {
            panic!("two shader files have one name: {other:?} and {path:?}");
        }
        let from_root = path.strip_prefix(&root).expect("below the root");
        let from_root = from_root.to_string_lossy().replace('\\', "/");
        // The compiler fills in the folder, not this program: its output may be kept when a build folder is copied elsewhere.
        writeln!(
            list,
            "    ShaderFile {{ name: {name:?}, path: {from_root:?}, text: include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/\", {from_root:?})) }},"
        )
        .expect("a string");
    }
    list.push_str("];\n");
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    fs::write(out.join("shader_files.rs"), list).expect("the folder of this build");
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of shaders") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "wgsl")
        {
            paths.push(path);
        }
    }
}
