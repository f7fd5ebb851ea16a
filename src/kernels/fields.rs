//! The values that a shader file is expanded with.

use std::fmt;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(u32),
    /// One of a few names.
    Word(&'static str),
}

/// Named values that a shader file is expanded with, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fields(Vec<(&'static str, Field)>);

impl Fields {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    pub fn with(mut self, name: &'static str, value: impl Into<Field>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    /// Adds the fields of `other`.
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Field)> + '_ {
        self.0.iter().copied()
    }

    /// `name` and all fields as one line of text, such as `matmul_rows lanes=8 lane_groups=4`.
    pub fn key(&self, name: &str) -> String {
        self.iter().fold(name.to_owned(), |key, (name, value)| {
            format!("{key} {name}={value}")
        })
    }
}

impl From<bool> for Field {
    fn from(value: bool) -> Self {
        Self::Flag(value)
    }
}

impl From<u32> for Field {
    fn from(value: u32) -> Self {
        Self::Number(value)
    }
}

impl From<&'static str> for Field {
    fn from(value: &'static str) -> Self {
        Self::Word(value)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Word(value) => value.fmt(f),
        }
    }
}
