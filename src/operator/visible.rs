//! Invisible characters in HTML.

use std::fmt::Write;

/// Makes invisible characters visible in a whole page, wherever they come from. Its markup contains none.
pub(super) fn visible(html: &str) -> String {
    let mut visible = String::with_capacity(html.len());
    for c in html.chars() {
        match c {
            '\'' => visible.push_str("&#39;"),
            // Writing to a `String` cannot fail.
            c if is_deceptive(c) => drop(write!(visible, "⟨U+{:04X}⟩", u32::from(c))),
            c => visible.push(c),
        }
    }
    visible
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
