//! One thing that qtunnel aims for: a figure, the bound it must keep, and the one it would like to.

use std::fmt;

use crate::tables::number;

/// Something that qtunnel wants of itself.
pub struct Aim {
    what: String,
    found: Option<f64>,
    must: Option<Bound>,
    goal: Option<Bound>,
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
impl Aim {
    pub fn new(what: impl Into<String>, found: Option<f64>) -> Self {
        Self {
            what: what.into(),
            found,
            must: None,
            goal: None,
        }
    }

    pub fn must(self, bound: Bound) -> Self {
        Self {
            must: Some(bound),
            ..self
        }
    }

    pub fn goal(self, bound: Bound) -> Self {
        Self {
            goal: Some(bound),
            ..self
        }
    }

    /// A line of the table; none if it was not measured.
    pub fn line(&self) -> Option<String> {
        let found = self.found?;
        let judged = |bound: Option<Bound>| match bound {
            None => String::new(),
            Some(bound) if bound.holds(found) => format!("{bound} ✓"),
            Some(bound) => format!("{bound} ✗"),
        };
        let (must, goal) = (judged(self.must), judged(self.goal));
        Some(format!(
            "| {} | {} | {must} | {goal} |\n",
            self.what,
            number(found, 2)
        ))
    }
}

impl Bound {
    fn holds(self, found: f64) -> bool {
        match self {
            Self::AtLeast(least) => found >= least,
            Self::AtMost(most) => found <= most,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}
