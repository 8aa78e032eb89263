//! Property files of Java: what `java.util.Properties` documents, in UTF-8.

use std::iter::Peekable;
use std::str::Chars;

/// A name and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Where it begins, from 1.
    pub line: usize,
    /// As written, without escapes.
    pub name: String,
    /// The same.
    pub value: String,
}

/// In the order of the file; of a name that comes twice both.
pub fn parse(text: &str) -> Result<Vec<Property>, String> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let mut line = line.trim_start().to_owned();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        // An odd number of backslashes at its end: the next line goes on with it.
        while (line.len() - line.trim_end_matches('\\').len()) % 2 == 1 {
            line.pop();
            line.push_str(lines.next().map_or("", |(_, next)| next.trim_start()));
        }
        let (name, value) = pair(&line).map_err(|reason| format!("line {}: {reason}", number + 1))?;
        found.push(Property { line: number + 1, name, value });
    }
    Ok(found)
}

fn pair(line: &str) -> Result<(String, String), String> {
    let mut rest = line.chars().peekable();
    let name = word(&mut rest, |character| character.is_whitespace() || matches!(character, '=' | ':'))?;
    let skip_blanks = |rest: &mut Peekable<Chars<'_>>| while rest.next_if(|character| character.is_whitespace()).is_some() {};
    skip_blanks(&mut rest);
    if rest.next_if(|character| matches!(character, '=' | ':')).is_some() {
        skip_blanks(&mut rest);
    }
    Ok((name, word(&mut rest, |_| false)?))
}

/// Up to a character that ends it and has no backslash before it.
fn word(rest: &mut Peekable<Chars<'_>>, is_end: impl Fn(char) -> bool) -> Result<String, String> {
    let mut word = String::new();
    while let Some(character) = rest.next_if(|character| !is_end(*character)) {
        if character != '\\' {
            word.push(character);
            continue;
        }
        word.push(match rest.next() {
            Some('t') => '\t',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('f') => '\u{c}',
            Some('u') => {
                let digits: String = rest.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4);
                code.and_then(char::from_u32).ok_or_else(|| format!("\\u{digits} is no character"))?
            }
            Some(other) => other,
            None => break,
        });
    }
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_read_as_java_reads_them() {
        let text = "# a comment\n! another\n\na=1\n  b : 2\nc 3\nd=\\\n   con\\\n tinued\ne\\:f=g\\u0041\\t=\nh\nurl=http://x:1/?a=b\nlast=\\\\\n";
        let properties = parse(text).expect("reads");
        let expected = [
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("d", "continued"),
            ("e:f", "gA\t="),
            ("h", ""),
            ("url", "http://x:1/?a=b"),
            ("last", "\\"),
        ];
        let pairs: Vec<_> = properties.iter().map(|property| (property.name.as_str(), property.value.as_str())).collect();
        assert_eq!(pairs, expected);
        for bad in ["a=\\u12", "x=1\na=\\u12G4"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("x\\").expect("reads"), [Property { line: 1, name: "x".to_owned(), value: String::new() }]);
        let lines: Vec<_> = properties.iter().map(|property| property.line).collect();
        assert_eq!(lines, [4, 5, 6, 7, 10, 11, 12, 13], "where each begins");
    }
}
