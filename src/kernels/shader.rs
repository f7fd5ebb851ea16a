//! Expands shader files to the text that is compiled.
//!
//! Shader files are templates for [minijinja](https://docs.rs/minijinja). Lines that begin with `#` are includes, branches and
//! unrolled loops; `${...}` is a value. They are expanded with the [fields](super::Fields) of a kernel. WGSL's own `override`
//! constants are not enough: they can neither size arrays in registers nor unroll loops, and an array stays in registers only while
//! all its indices are constants.
//!
//! To see the expanded text, run `cargo run --example shader`, or set [`DUMP_VARIABLE`] to a folder to which every compiled shader
//! is written.

use std::error::Error as _;
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};

use super::{Field, Fields};
use crate::error::{Error, Result};

/// A file of the folder `shaders`.
struct ShaderFile {
    /// File name, unique across all subfolders.
    name: &'static str,
    /// Path from the crate's root.
    path: &'static str,
    text: &'static str,
}

// Defines FILES, all shader files; written by build.rs.
include!(concat!(env!("OUT_DIR"), "/shader_files.rs"));

/// Environment variable that names a folder for the text of every shader that is compiled.
pub const DUMP_VARIABLE: &str = "DILATED_ATTENTION_SHADER_DUMP";

/// Separates each line from its origin (numbers of file and line) while files are expanded. No shader file contains this character.
const ORIGIN_MARK: char = '\u{1}';

/// The expanded text of a kernel, as it is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shader {
    /// The WGSL text.
    pub text: String,
    /// For each line of the text: index in `FILES` and line number of its source.
    origins: Vec<Option<(usize, usize)>>,
}

impl Shader {
    /// Expands the shader file of the kernel `name`.
    pub(super) fn expand(name: &'static str, fields: &Fields) -> Result<Self> {
        let expand = || {
            let values = fields.iter().map(|(name, field)| {
                let value: Value = match field {
                    Field::Flag(value) => value.into(),
                    Field::Number(value) => value.into(),
                    Field::Word(value) => value.into(),
                };
                (name, value)
            });
            let values = Value::from_pairs(values);
            let template = environment().get_template(&format!("{name}.wgsl"))?;
            template.render(values)
        };
        let marked = expand().map_err(|error| Error::Validation {
            label: name.into(),
            reason: Self::located(&error),
        })?;
        Ok(Self::unmarked(&marked))
    }

    /// The message of `error` with the file and line in which it occurred: the innermost of the included files.
    fn located(error: &minijinja::Error) -> String {
        let mut innermost = error;
        while let Some(cause) = innermost.source().and_then(|cause| cause.downcast_ref()) {
            innermost = cause;
        }
        let place = innermost.name().zip(innermost.line());
        let place = place.map_or(String::new(), |(name, line)| {
            let file = FILES.iter().find(|file| file.name == name);
            format!("{}:{line}: ", file.map_or(name, |file| file.path))
        });
        let detail = innermost
            .detail()
            .map_or_else(String::new, |detail| format!(": {detail}"));
        format!("{place}{}{detail}", innermost.kind())
    }

    /// Splits the marks off the lines, and moves `enable` directives to the top, each once, as WGSL demands.
    fn unmarked(marked: &str) -> Self {
        let lines = marked.lines().map(|line| {
            let (line, mark) = line.split_once(ORIGIN_MARK).unwrap_or((line, ""));
            let mark = mark.split(ORIGIN_MARK).next().unwrap_or_default();
            let origin = mark.split_once(':').and_then(|(file, line)| {
                Some((file.parse::<usize>().ok()?, line.parse::<usize>().ok()?))
            });
            (line, origin)
        });
        let (enables, others): (Vec<_>, Vec<_>) =
            lines.partition(|(line, _)| line.starts_with("enable "));
        let mut kept: Vec<(&str, Option<(usize, usize)>)> = Vec::new();
        for line in enables {
            if kept.iter().all(|(other, _)| *other != line.0) {
                kept.push(line);
            }
        }
        for line in others {
            // Template lines leave empty lines behind.
            let both_empty =
                line.0.is_empty() && kept.last().is_none_or(|(last, _)| last.is_empty());
            if !both_empty {
                kept.push(line);
            }
        }
        let mut text = String::new();
        for (line, _) in &kept {
            text.push_str(line);
            text.push('\n');
        }
        let origins = kept.into_iter().map(|(_, origin)| origin).collect();
        Self { text, origins }
    }

    /// Whether the text enables a WGSL extension.
    pub fn enables(&self, extension: &str) -> bool {
        let directive = format!("enable {extension};");
        self.text.lines().any(|line| line == directive)
    }

    /// Path and line number of the source of line `line` of the text. Lines count from 1.
    pub fn origin(&self, line: usize) -> Option<(&'static str, usize)> {
        let (file, line) = (*self.origins.get(line.checked_sub(1)?)?)?;
        Some((FILES.get(file)?.path, line))
    }

    /// A compiler's message with places such as `wgsl:12:34` (wgpu and naga) replaced by the file and line of the source.
    pub fn with_origins(&self, message: &str) -> String {
        const PLACE: &str = "wgsl:";
        let mut result = String::new();
        let mut rest = message;
        while let Some(at) = rest.find(PLACE) {
            let (before, after) = rest.split_at(at);
            let number = &after[PLACE.len()..];
            let digits = number
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(number.len());
            let line = number[..digits].parse().ok();
            result.push_str(before);
            match line.and_then(|line| self.origin(line)) {
                Some((path, line)) => result.push_str(&format!("{path}:{line}")),
                None => result.push_str(&after[..PLACE.len() + digits]),
            }
            rest = &number[digits..];
        }
        result.push_str(rest);
        result
    }

    /// Writes the text to the folder that [`DUMP_VARIABLE`] names, if it is set. Failures to write are ignored, so that a dump
    /// never keeps a shader from running.
    pub(super) fn dump(&self, key: &str) {
        if let Some(folder) = std::env::var_os(DUMP_VARIABLE).filter(|folder| !folder.is_empty()) {
            let folder = Path::new(&folder);
            let _ = std::fs::create_dir_all(folder);
            let _ = std::fs::write(folder.join(format!("{key}.wgsl")), &self.text);
        }
    }
}

impl fmt::Display for Shader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The template engine, with all shader files.
fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // WGSL says `true` where the engine would write `True`.
        environment.set_formatter(|out, state, value| match bool::try_from(value.clone()) {
            Ok(flag) if value.kind() == ValueKind::Bool => Ok(write!(out, "{flag}")?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        if let Some(syntax) = syntax() {
            environment.set_syntax(syntax);
        }
        environment.set_loader(|name| {
            let mut numbered = FILES.iter().enumerate();
            let found = numbered.find(|(_, file)| file.name == name);
            Ok(found.map(|(number, file)| marked(number, file.text)))
        });
        environment
    })
}

fn syntax() -> Option<SyntaxConfig> {
    let config = SyntaxConfig::builder()
        .line_statement_prefix("#")
        .variable_delimiters("${", "}")
        .block_delimiters("<%", "%>")
        .comment_delimiters("<#", "#>")
        .build();
    debug_assert!(config.is_ok());
    config.ok()
}

/// The text with its origin marked at the end of each line, except in template lines, which begin with `#`.
fn marked(file: usize, text: &str) -> String {
    let mut marked = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        marked.push_str(line);
        if !line.trim_start().starts_with('#') {
            marked.push_str(&format!("{ORIGIN_MARK}{file}:{number}"));
        }
        marked.push('\n');
    }
    marked
}
