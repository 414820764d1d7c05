//! Patterns of keys, as Redis understands them (`stringmatchlen` in its `util.c`).

/// A parsed pattern.
pub(super) struct Glob(Vec<Part>);

enum Part {
    /// `*`
    Some,
    /// `?`
    One,
    /// A literal character.
    Byte(u8),
    /// `[…]`, `[^…]`
    OneOf { not: bool, ranges: Vec<(u8, u8)> },
}

impl Part {
    fn matches(&self, byte: u8) -> bool {
        match self {
            Self::Some | Self::One => true,
            Self::Byte(own) => *own == byte,
            Self::OneOf { not, ranges } => ranges.iter().any(|(from, to)| (*from..=*to).contains(&byte)) != *not,
        }
    }
}

impl Glob {
    /// Every string is a valid pattern: an unclosed class ends with it, and a final `\` is literal.
    pub(super) fn new(pattern: &str) -> Self {
        let (mut rest, mut parts) = (pattern.as_bytes(), Vec::new());
        while let [first, after @ ..] = rest {
            (rest, _) = match (first, after) {
                (b'*', _) => (after, parts.push(Part::Some)),
                (b'?', _) => (after, parts.push(Part::One)),
                (b'\\', [escaped, after @ ..]) => (after, parts.push(Part::Byte(*escaped))),
                (b'[', _) => {
                    let (class, after) = class(after);
                    (after, parts.push(class))
                }
                (byte, _) => (after, parts.push(Part::Byte(*byte))),
            };
        }
        Self(parts)
    }

    /// In time proportional to the product of both lengths at most.
    pub(super) fn matches(&self, text: &str) -> bool {
        let (parts, text) = (&*self.0, text.as_bytes());
        let (mut part, mut at) = (0, 0);
        // After the last `*`: where to continue if the rest does not match.
        let mut star = None;
        while at < text.len() {
            match parts.get(part) {
                Some(Part::Some) => {
                    part += 1;
                    star = Some((part, at));
                }
                Some(one) if one.matches(text[at]) => (part, at) = (part + 1, at + 1),
                _ => match star {
                    Some((after, taken)) => {
                        (part, at) = (after, taken + 1);
                        star = Some((after, taken + 1));
                    }
                    None => return false,
                },
            }
        }
        parts[part..].iter().all(|part| matches!(part, Part::Some))
    }
}

/// Parses a class after `[`. Returns the rest.
fn class(rest: &[u8]) -> (Part, &[u8]) {
    let (not, mut rest) = match rest {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut ranges = Vec::new();
    loop {
        let range;
        (range, rest) = match rest {
            [b'\\', escaped, rest @ ..] => ((*escaped, *escaped), rest),
            [b']', rest @ ..] => return (Part::OneOf { not, ranges }, rest),
            [from, b'-', to, rest @ ..] => ((*from.min(to), *from.max(to)), rest),
            [byte, rest @ ..] => ((*byte, *byte), rest),
            [] => return (Part::OneOf { not, ranges }, rest),
        };
        ranges.push(range);
    }
}
