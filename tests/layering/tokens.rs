//! A lexer for the sources, and a parser for their import paths.

#[derive(Debug)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        self.text == text
    }

    pub fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
    }
}

/// The tokens of a source: names, `::`, and single characters. Comments and literals are dropped.
pub fn lex(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let name = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut line, mut i) = (Vec::new(), 1, 0);
    while i < chars.len() {
        let start = i;
        i = match (at(i), at(i + 1)) {
            ('/', '/') => (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len()),
            ('/', '*') => end_of_comment(&chars, i),
            ('"', _) => end_of_string(&chars, i),
            ('\'', '\\') => (i + 3..chars.len()).find(|&j| at(j) == '\'').unwrap_or(chars.len()) + 1,
            ('\'', _) if at(i + 2) == '\'' => i + 3,
            ('\'', _) => i + 1,
            (':', ':') => i + 2,
            (c, _) if name(c) => (i..chars.len()).find(|&j| !name(at(j))).unwrap_or(chars.len()),
            _ => i + 1,
        };
        let mut text: String = chars[start..i.min(chars.len())].iter().collect();
        if matches!(&text[..], "r" | "br" | "cr") && matches!(at(i), '"' | '#') {
            let hashes = (i..chars.len()).take_while(|&j| at(j) == '#').count();
            if at(i + hashes) == '"' {
                i = end_of_raw_string(&chars, i + hashes, hashes);
                text = "\"".into();
            } else {
                i += hashes; // r#name
            }
        }
        if !text.starts_with(|c: char| c.is_whitespace() || c == '"' || c == '\'')
            && !text.starts_with("//")
            && !text.starts_with("/*")
        {
            tokens.push(Token { text, line });
        }
        line += chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn end_of_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') if depth == 1 => return i + 2,
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn end_of_raw_string(chars: &[char], quote: usize, hashes: usize) -> usize {
    let closes = |j: &usize| {
        chars[*j] == '"' && chars[j + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    (quote + 1..chars.len()).find(closes).map_or(chars.len(), |j| j + 1 + hashes)
}

/// The tokens of a source without the items under `#[cfg(test)]`.
pub fn lex_without_tests(source: &str) -> Vec<Token> {
    const ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut tokens = lex(source).into_iter().peekable();
    while let Some(token) = tokens.next() {
        kept.push(token);
        let Some(start) = kept.len().checked_sub(ATTRIBUTE.len()) else { continue };
        if kept[start..].iter().zip(ATTRIBUTE).all(|(t, a)| t.is(a)) {
            kept.truncate(start);
            let mut depth = 0;
            // The item ends at its first `;` outside of brackets, or after its first block.
            for token in tokens.by_ref() {
                match &token.text[..] {
                    "{" | "(" | "[" => depth += 1,
                    "}" | ")" | "]" => depth -= 1,
                    _ => {}
                }
                if depth == 0 && (token.is("}") || token.is(";")) {
                    break;
                }
            }
        }
    }
    kept
}

/// Parses a path or a tree of paths, `a::{b, c::d as e, *}`, at `*at`. Appends each path with its line.
pub fn use_tree(tokens: &[Token], at: &mut usize, prefix: &[String], paths: &mut Vec<(Vec<String>, usize)>) {
    let (mut path, line) = (prefix.to_vec(), tokens.get(*at).map_or(0, |t| t.line));
    loop {
        match tokens.get(*at) {
            Some(t) if t.is("{") && (path.len() > prefix.len() || prefix.is_empty()) => {
                *at += 1;
                while tokens.get(*at).is_some_and(|t| !t.is("}")) {
                    let start = *at;
                    use_tree(tokens, at, &path, paths);
                    if tokens.get(*at).is_some_and(|t| t.is(",")) || *at == start {
                        *at += 1;
                    }
                }
                *at += 1;
                return;
            }
            Some(t) if t.is("*") || t.is_name() => path.push(t.text.clone()),
            _ => break,
        }
        *at += 1;
        if tokens.get(*at).is_some_and(|t| t.is("as")) {
            *at += 2;
        }
        if !tokens.get(*at).is_some_and(|t| t.is("::")) {
            break;
        }
        *at += 1;
    }
    paths.push((path, line));
}
