//! Where cache files are kept.
//!
//! The folders are those that each platform defines. A crate for them would bring more dependencies than it saves lines.

use std::path::PathBuf;

/// The cache folder, for the winners of measurements ([`tune`](crate::tuning::tune)) and for compiled kernels. Its files only save
/// time: any of them may be deleted at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheFolder {
    /// No folder: nothing is read or written.
    #[default]
    Off,
    /// The folder that [`VARIABLE`](Self::VARIABLE) names. Where the variable is not set: `dilated-attention` in the user's cache folder
    /// (`$XDG_CACHE_HOME` or `~/.cache`, `~/Library/Caches`, `%LOCALAPPDATA%`). No folder in browsers.
    User,
    /// This folder, whatever the environment says.
    At(PathBuf),
}

impl CacheFolder {
    /// Variable of the environment that names the [user's](Self::User) folder, or turns it off: `off`, `0` or nothing.
    pub const VARIABLE: &str = "DILATED_ATTENTION_CACHE";

    /// Path of the folder, which need not exist; `None` for no folder.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::User => user_folder(|name| std::env::var_os(name).map(PathBuf::from)),
            Self::At(path) => Some(path.clone()),
            Self::Off => None,
        }
    }
}

/// The folder of [`CacheFolder::User`]; `variable` reads an environment variable.
fn user_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(value) = variable(CacheFolder::VARIABLE) {
        let off = ["", "0", "off"]
            .iter()
            .any(|word| value.as_os_str() == *word);
        return (!off).then_some(value);
    }
    // A relative path would depend on the working directory, which is not the user's folder.
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    let caches = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Caches"))
    } else if cfg!(unix) {
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
    } else {
        None
    };
    caches.map(|caches| caches.join("dilated-attention"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(variables: &[(&str, &str)]) -> Option<PathBuf> {
        user_folder(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn the_variable_names_the_folder_or_turns_it_off() {
        assert_eq!(folder(&[(CacheFolder::VARIABLE, "/x")]), Some("/x".into()));
        for off in ["", "0", "off"] {
            assert_eq!(
                folder(&[(CacheFolder::VARIABLE, off), ("HOME", "/home/a")]),
                None
            );
        }
        assert_eq!(folder(&[]), None);
    }

    #[test]
    #[cfg(all(unix, not(target_os = "macos")))]
    fn the_users_folder_follows_the_platform() {
        let home = ("HOME", "/home/a");
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(folder(&[home]), at("/home/a/.cache/dilated-attention"));
        let xdg = ("XDG_CACHE_HOME", "/c");
        assert_eq!(folder(&[home, xdg]), at("/c/dilated-attention"));
        let relative = ("XDG_CACHE_HOME", "c");
        assert_eq!(
            folder(&[home, relative]),
            at("/home/a/.cache/dilated-attention")
        );
    }
}
