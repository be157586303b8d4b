//! Printing of errors with their causes.

use std::error::Error;

/// The error and its causes on one line, each part once.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Some libraries print the cause as part of their own text as well.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        cause: Option<Box<Layer>>,
    }

    #[test]
    fn causes_follow_in_order_and_none_is_said_twice() {
        let bottom = Layer { text: "permission denied", cause: None };
        let middle = Layer { text: "cannot open: permission denied", cause: Some(Box::new(bottom)) };
        let top = Layer { text: "cannot start", cause: Some(Box::new(middle)) };
        assert_eq!(chain(&top), "cannot start: cannot open: permission denied");
    }
}
