//! The floors of the library: modules of `src` know only those that stand above them in the list of lib.rs.

use std::fs;
use std::path::{Path, PathBuf};

/// An arrow between two modules that should not be.
#[derive(Debug, PartialEq, Eq)]
struct Arrow {
    file: String,
    line: usize,
    to: String,
}

/// The modules that lib.rs declares, in order.
fn floors(lib: &str) -> Vec<String> {
    let declared = lib.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    declared.map(str::to_owned).collect()
}

/// Every `crate::name` in the code of a module, leaving out comments, what is for documentation or tests alone, and itself.
fn references(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut for_docs = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        // Tests stand at the end of their file, and may know everything.
        if line == "#[cfg(test)]" {
            break;
        }
        let skipped = for_docs || line.starts_with("//");
        for_docs = line == "#[cfg(doc)]";
        if skipped {
            continue;
        }
        let code = line.split("// ").next().unwrap_or_default();
        for after in code.split("crate::").skip(1) {
            let name = after
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next();
            found.push((number, name.unwrap_or_default().to_owned()));
        }
    }
    found
}

/// The references that do not point to a lower floor. What is not a module, such as a type that lib.rs shows once more, is no floor.
fn arrows_back(floors: &[String], file: &str, text: &str) -> Vec<Arrow> {
    let module = file.split(['/', '.']).next().unwrap_or_default();
    let place = |name: &str| floors.iter().position(|floor| floor == name);
    let own = place(module);
    let wrong = references(text).into_iter().filter(|(_, to)| {
        let is_lower = place(to).is_some_and(|to| own.is_some_and(|own| to < own));
        to != module && to != "wgpu" && !is_lower
    });
    wrong
        .map(|(line, to)| Arrow {
            file: file.to_owned(),
            line,
            to,
        })
        .collect()
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[test]
fn modules_know_only_lower_floors() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let floors = floors(&fs::read_to_string(src.join("lib.rs")).expect("lib.rs"));
    assert!(floors.len() > 20, "{floors:?}");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut arrows = Vec::new();
    for path in files {
        let file = path.strip_prefix(&src).expect("in src").to_string_lossy();
        let file = file.replace('\\', "/");
        // Modules of tests that are files of their own.
        let is_test = file.ends_with("/tests.rs") || file.contains("/tests/");
        if file == "lib.rs" || file == "documented_figures.rs" || is_test {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        arrows.extend(arrows_back(&floors, &file, &text));
    }
    assert!(arrows.is_empty(), "{arrows:#?}");
}

#[test]
fn an_arrow_back_is_found() {
    let floors = floors("mod low;\n\npub mod high;\npub mod top;\n");
    assert_eq!(floors, ["low", "high", "top"]);
    let back = |file: &str, text: &str| {
        let arrows = arrows_back(&floors, file, text).into_iter();
        arrows
            .map(|arrow| (arrow.line, arrow.to))
            .collect::<Vec<_>>()
    };
    let text = "use crate::low::A;\nuse crate::high::B;\n\nfn f() -> crate::top::C {}\n";
    assert_eq!(back("high.rs", text), [(4, "top".to_owned())]);
    assert_eq!(back("top/part.rs", text), []);
    let both = [(2, "high".to_owned()), (4, "top".to_owned())];
    assert_eq!(back("low/part.rs", text), both);
    // What lib.rs shows once more hides the floor that it is from.
    assert_eq!(
        back("top.rs", "use crate::Shown;"),
        [(1, "Shown".to_owned())]
    );
    let free =
        "//! [`crate::top`]\n#[cfg(doc)]\nuse crate::top::C;\n#[cfg(test)]\nuse crate::top::C;";
    assert_eq!(back("low.rs", free), []);
}
