//! Finds import cycles between modules, of any length, also through re-exported names.

use std::collections::BTreeMap;

use super::tokens::{Token, lex_without_tests, use_tree};

/// Path of a module from the crate root.
type Module = Vec<String>;

/// The modules of a crate, without test modules.
pub struct Modules {
    pub texts: BTreeMap<Module, Vec<Token>>,
    /// Re-exported names of each module, with the module that defines each name.
    exports: BTreeMap<Module, BTreeMap<String, Module>>,
}

impl Modules {
    pub fn read(sources: Vec<(String, String)>, folder: &str, top: &str) -> Modules {
        let mut texts = BTreeMap::new();
        for (file, text) in sources {
            let inner = file.strip_prefix(folder).unwrap().trim_start_matches('/').trim_end_matches(".rs");
            let mut module: Module = inner.split('/').map(str::to_owned).collect();
            if module.last().is_some_and(|last| last == "mod" || module.len() == 1 && last == top) {
                module.pop();
            }
            texts.insert(module, lex_without_tests(&text));
        }
        // A file that only a test module declares is a test.
        let declared = |module: &Module| match module.split_last() {
            None => true,
            Some((name, parent)) => texts.get(parent).is_none_or(|tokens: &Vec<Token>| {
                tokens.windows(2).any(|pair| pair[0].is("mod") && pair[1].is(name))
            }),
        };
        let tests: Vec<Module> = texts.keys().filter(|module| !declared(module)).cloned().collect();
        texts.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        let mut modules = Modules { texts, exports: BTreeMap::new() };
        modules.exports = modules.texts.keys().map(|m| (m.clone(), modules.exports_of(m))).collect();
        modules
    }

    fn exports_of(&self, module: &Module) -> BTreeMap<String, Module> {
        let tokens = &self.texts[module];
        let mut names = BTreeMap::new();
        for (i, _) in tokens.iter().enumerate().filter(|(_, token)| token.is("use")) {
            let mut paths = Vec::new();
            use_tree(tokens, &mut (i + 1), &[], &mut paths);
            for (mut path, _) in paths {
                path.retain(|part| part != "self");
                let mut at = module.clone();
                for part in &path {
                    at.push(part.clone());
                    if !self.texts.contains_key(&at) {
                        at.pop();
                        break;
                    }
                }
                if at != *module {
                    names.insert(path.pop().unwrap(), at);
                }
            }
        }
        names
    }

    /// Resolves `path`, as written in `here` (`depth` inline modules deep), to a module.
    fn resolve(&self, here: &Module, depth: usize, path: &[String]) -> Option<Module> {
        let mut parts = path.iter().peekable();
        let mut at = here.clone();
        match parts.next()?.as_str() {
            "crate" => at.clear(),
            "self" if depth == 0 => {}
            "super" => {
                let mut climbed = 1;
                while parts.next_if(|part| *part == "super").is_some() {
                    climbed += 1;
                }
                for _ in depth..climbed {
                    at.pop()?;
                }
            }
            _ => return None,
        }
        for part in parts {
            at.push(part.clone());
            if self.texts.contains_key(&at) {
                continue;
            }
            at.pop();
            // A re-exported name counts as an import of the module that defines it.
            while let Some(from) = self.exports.get(&at).and_then(|names| names.get(part)) {
                if *from == at {
                    break;
                }
                at = from.clone();
            }
            break;
        }
        self.texts.contains_key(&at).then_some(at)
    }

    /// The modules that `module` imports. Ancestors and descendants do not count.
    pub fn imports(&self, module: &Module) -> Vec<Module> {
        let tokens = &self.texts[module];
        let mut found = Vec::new();
        let mut braces: Vec<bool> = Vec::new();
        let mut i = 0;
        while i < tokens.len() {
            let token = &tokens[i];
            if token.is("{") {
                braces.push(i >= 2 && tokens[i - 2].is("mod"));
            } else if token.is("}") {
                braces.pop();
            } else if token.is("use") || token.is("crate") || token.is("super") || token.is("self") {
                let (mut paths, mut next) = (Vec::new(), i + usize::from(token.is("use")));
                use_tree(tokens, &mut next, &[], &mut paths);
                let depth = braces.iter().filter(|inline| **inline).count();
                found.extend(paths.iter().filter_map(|(path, _)| self.resolve(module, depth, path)));
                i = next.max(i + 1);
                continue;
            }
            i += 1;
        }
        found.retain(|to| !to.starts_with(module) && !module.starts_with(to));
        found.sort();
        found.dedup();
        found
    }

    /// For each module the shortest cycle through it, reported at the cycle's first module only.
    pub fn circles(&self) -> Vec<String> {
        let imports: BTreeMap<&Module, Vec<Module>> =
            self.texts.keys().map(|module| (module, self.imports(module))).collect();
        let mut found = Vec::new();
        for start in self.texts.keys() {
            // Visits only later modules, so that each cycle is found from its first module.
            let mut ways: Vec<Vec<&Module>> = vec![vec![start]];
            let mut seen = vec![start];
            while let Some(way) = ways.pop() {
                for next in &imports[way[way.len() - 1]] {
                    if next == start {
                        let names: Vec<String> = way.iter().map(|module| module.join("/")).collect();
                        found.push(format!("{} -> {}", names.join(" -> "), start.join("/")));
                    } else if next > start && !seen.contains(&next) {
                        seen.push(next);
                        ways.insert(0, way.iter().copied().chain([next]).collect());
                    }
                }
            }
        }
        found
    }
}

fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let owned = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    Modules::read(owned, "src", "lib").circles()
}

#[test]
fn import_cycles_are_found_through_any_kind_of_path() {
    let lib = ("src/lib.rs", "mod a; mod b;");
    let page = ("src/b/mod.rs", "mod c; mod d; pub use c::Name; use crate::a::x;");
    let c = ("src/b/c.rs", "pub struct Name;");
    assert_eq!(circles_of(&[lib, ("src/a.rs", "use std::fs;"), page, c]), Vec::<String>::new());
    // A module and its children count as one.
    let part = ("src/b/d.rs", "use super::{Name, Other}; use super::c::f;");
    assert_eq!(circles_of(&[lib, ("src/a.rs", ""), page, c, part]), Vec::<String>::new());
    assert_eq!(circles_of(&[lib, ("src/a.rs", "fn f() { crate::b::g() }"), page, c]), ["a -> b -> a"]);
    // Through a re-exported name.
    let passed = ("src/b/c.rs", "use super::d::x;");
    assert_eq!(circles_of(&[lib, ("src/a.rs", ""), page, passed, part]), ["b/c -> b/d -> b/c"]);
    let name = ("src/b/d.rs", "use super::Name;");
    assert_eq!(circles_of(&[lib, ("src/a.rs", ""), page, passed, name]), ["b/c -> b/d -> b/c"]);
    // Test code may import anything.
    let tests =
        ("src/b/c.rs", "#[cfg(test)] mod tests { use super::super::d::x; } #[cfg(test)] use super::d::y;");
    assert_eq!(circles_of(&[lib, ("src/a.rs", ""), page, tests, name]), Vec::<String>::new());
}
