//! HTML with escaping.

use std::fmt::{self, Display, Write};

/// HTML. Only markup from the source code is unescaped.
#[derive(Default)]
pub(super) struct Html(String);

impl Html {
    pub(super) fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text between tags or quotes. Invisible characters become visible.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing to a `String` cannot fail.
        let _ = write!(Escaped(&mut self.0), "{text}");
        self
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                c if is_deceptive(c) => write!(self.0, "⟨U+{:04X}⟩", u32::from(c))?,
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// Invisible characters, and characters that change the text direction.
pub(super) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}
