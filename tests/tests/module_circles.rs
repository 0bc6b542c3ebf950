//! The house has no circles: inside a crate no two files need each other, neither directly nor round a circle.
//!
//! The rule, in plain words:
//!
//! - A file **uses** another one of its crate when a path in its code (an import, or a path written out) names something
//!   that the other file defines. A path is followed through `pub use` and through imported modules to the file where
//!   the thing itself stands: who says `machine::Reader` uses `machine/reading/read.rs`, not `machine/mod.rs`.
//! - A file also uses another one when it calls, on `self`, a method that the other one adds to the same type by an
//!   `impl` block of its own. So a parent that owns a type, whose children implement parts of it and are called by the
//!   parent, is a circle: the child names the type, the parent calls the child. The type then moves to a file of its own
//!   below the children, or what calls them to one above.
//! - `mod x;` is no use, nor is re-exporting something from below oneself: a door (`mod` lines, docs, re-exports) uses
//!   nothing. A parent that works with what it re-exports does.
//! - Naming a module is no use; what is taken out of it is. Code under `#[cfg(test)]` does not count.
//!
//! What the rule does not see: a value whose type is never named, a method that is called on anything but `self`, and
//! what a trait object leads to. Those are what files that keep out of a circle are for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

/// A use that may stand although it closes a circle.
struct Exception {
    from: &'static str,
    to: &'static str,
    reason: &'static str,
}

/// Few, and each with what would be worse without it. One that no longer closes a circle has to go.
const EXCEPTIONS: &[Exception] = &[];

#[test]
fn no_two_files_of_a_crate_need_each_other() {
    let mut found = Vec::new();
    let mut exceptions: Vec<_> = EXCEPTIONS.iter().collect();
    for name in ["transport", "kv", "meta", "bin"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut sources = Sources::new();
        read(&root, &format!("{name}/src"), &mut sources);
        let mut uses = uses(&sources, &format!("{name}/src/lib.rs"));
        assert!(
            uses.0.len() > sources.len() / 2,
            "{name}: {} uses among {} files",
            uses.0.len(),
            sources.len()
        );
        let of_this = |e: &&Exception| e.from.starts_with(&format!("{name}/"));
        for exception in exceptions.extract_if(.., |e| of_this(e)) {
            assert!(!exception.reason.is_empty());
            let between = (exception.from.to_owned(), exception.to.to_owned());
            let closes = uses.0.contains_key(&between) && uses.way(&between.1, &between.0).is_some();
            if !closes {
                found.push(format!(
                    "listed as an exception, but closes no circle: {} uses {}",
                    exception.from, exception.to
                ));
            }
            uses.0.remove(&between);
        }
        found.extend(uses.circles());
    }
    assert!(exceptions.is_empty(), "an exception of no crate");
    assert!(found.is_empty(), "{} circles:\n{}", found.len(), found.join("\n"));
}

/// Sources by path.
type Sources = BTreeMap<String, String>;

fn read(root: &Path, dir: &str, sources: &mut Sources) {
    for entry in std::fs::read_dir(root.join(dir)).expect("a directory of sources") {
        let entry = entry.expect("an entry");
        let path = format!("{dir}/{}", entry.file_name().to_str().expect("a plain name"));
        if entry.path().is_dir() {
            read(root, &path, sources);
        } else if path.ends_with(".rs") {
            let source = std::fs::read_to_string(entry.path()).expect("a source");
            sources.insert(path, source);
        }
    }
}

/// Which file uses which, and by what path.
struct Uses(BTreeMap<(String, String), String>);

impl Uses {
    /// The shortest way from one file to another, both included.
    fn way(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut came_from = BTreeMap::from([(from.to_owned(), None)]);
        let mut queue = VecDeque::from([from.to_owned()]);
        while let Some(file) = queue.pop_front() {
            if file == to {
                let mut way = vec![file.clone()];
                let mut at = file;
                while let Some(Some(before)) = came_from.get(&at) {
                    way.push(String::clone(before));
                    at = before.clone();
                }
                way.reverse();
                return Some(way);
            }
            let leaving = self.0.range((file.clone(), String::new())..);
            for ((_, next), _) in leaving.take_while(|((from, _), _)| *from == file) {
                if !came_from.contains_key(next) {
                    came_from.insert(next.clone(), Some(file.clone()));
                    queue.push_back(next.clone());
                }
            }
        }
        None
    }

    /// For every use that lies on a circle, the shortest circle that it lies on.
    fn circles(&self) -> Vec<String> {
        let mut circles = BTreeSet::new();
        for (from, to) in self.0.keys() {
            let Some(mut way) = self.way(to, from) else {
                continue;
            };
            let least = way.iter().min().cloned();
            while way.first() != least.as_ref() {
                way.rotate_left(1);
            }
            circles.insert((way.len(), way));
        }
        let told = circles.into_iter().map(|(_, way)| {
            let mut told = way[0].clone();
            for (at, from) in way.iter().enumerate() {
                let to = &way[(at + 1) % way.len()];
                let by = &self.0[&(from.clone(), to.clone())];
                told.push_str(&format!("\n    uses {to} ({by})"));
            }
            told
        });
        told.collect()
    }
}

/// The uses among the files of a crate that its root leads to.
fn uses(sources: &Sources, root: &str) -> Uses {
    let mut house = House {
        sources,
        modules: Vec::new(),
        named: Vec::new(),
        blocks: Vec::new(),
    };
    let root = house.add(None, root);
    house.scan_file(root);
    house.uses()
}

/// A module: a file, or a part of one in braces.
struct Module {
    file: String,
    /// Where the files of its children are.
    dir: String,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// What imports and re-exports bind here, by name.
    bound: BTreeMap<String, Vec<String>>,
}

/// A path, and the module that says it.
struct Named {
    module: usize,
    path: Vec<String>,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Used,
    Reexported,
    /// Imported or re-exported with all that is in it.
    Whole,
}

/// An `impl` block.
struct Block {
    module: usize,
    of: Vec<String>,
    is_of_trait: bool,
    methods: BTreeSet<String>,
    calls: BTreeSet<String>,
}

/// What a path leads to.
enum Target {
    Module,
    /// Something that this module defines, or an item within it.
    Item(usize, String),
    /// Another crate, or nothing that is known.
    Elsewhere,
}

/// The modules of a crate.
struct House<'a> {
    sources: &'a Sources,
    modules: Vec<Module>,
    named: Vec<Named>,
    blocks: Vec<Block>,
}

impl House<'_> {
    fn add(&mut self, parent: Option<usize>, file: &str) -> usize {
        let (folder, name) = file.rsplit_once('/').expect("a folder and a name");
        let dir = match name {
            "lib.rs" | "mod.rs" => folder.to_owned(),
            _ => file.trim_end_matches(".rs").to_owned(),
        };
        self.modules.push(Module {
            file: file.to_owned(),
            dir,
            parent,
            children: BTreeMap::new(),
            bound: BTreeMap::new(),
        });
        self.modules.len() - 1
    }

    fn scan_file(&mut self, module: usize) {
        let sources = self.sources;
        let source = &sources[&self.modules[module].file];
        self.scan(module, &without_tests(&tokens(source)));
    }

    fn scan(&mut self, module: usize, tokens: &[&str]) {
        let token = |at: usize| tokens.get(at).copied().unwrap_or("");
        // The blocks that we are in, and where each ends.
        let mut within: Vec<(usize, usize)> = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            within.retain(|(_, end)| at < *end);
            let before = at.checked_sub(1).map_or("", token);
            match token(at) {
                "mod" if token(at + 2) == ";" => {
                    self.child_in_file(module, token(at + 1));
                    at += 3;
                }
                "mod" if token(at + 2) == "{" => {
                    let end = closing(tokens, at + 2);
                    let file = self.modules[module].file.clone();
                    let child = self.add(Some(module), &file);
                    self.modules[child].dir = format!("{}/{}", self.modules[module].dir, token(at + 1));
                    self.modules[module]
                        .children
                        .insert(token(at + 1).to_owned(), child);
                    self.scan(child, &tokens[at + 3..end]);
                    at = end + 1;
                }
                "use" if token(at + 1) != "<" => {
                    at = self.import(module, tokens, at + 1, &[], before == "pub") + 1;
                }
                "impl" if matches!(before, "" | "}" | ";" | "{" | "unsafe") => {
                    let (body, of, is_of_trait) = head(tokens, at);
                    self.blocks.push(Block {
                        module,
                        of,
                        is_of_trait,
                        methods: BTreeSet::new(),
                        calls: BTreeSet::new(),
                    });
                    within.push((self.blocks.len() - 1, closing(tokens, body)));
                    at += 1;
                }
                name if is_name(name) => {
                    let mut path = vec![name.to_owned()];
                    while token(at + 1) == "::" && is_name(token(at + 2)) {
                        path.push(token(at + 2).to_owned());
                        at += 2;
                    }
                    if let Some((block, _)) = within.last() {
                        let block = &mut self.blocks[*block];
                        if before == "fn" {
                            block.methods.insert(path[0].clone());
                        }
                        if path[0] == "self" && token(at + 1) == "." && is_name(token(at + 2)) {
                            block.calls.insert(token(at + 2).to_owned());
                        }
                        if path[0] == "Self" && path.len() > 1 {
                            block.calls.insert(path[1].clone());
                        }
                    }
                    if !matches!(before, "." | "::" | "fn") {
                        self.named.push(Named {
                            module,
                            path,
                            how: How::Used,
                        });
                    }
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    fn child_in_file(&mut self, module: usize, name: &str) {
        let dir = &self.modules[module].dir;
        let files = [format!("{dir}/{name}.rs"), format!("{dir}/{name}/mod.rs")];
        let file = files.iter().find(|file| self.sources.contains_key(*file));
        let file = file.unwrap_or_else(|| panic!("{files:?}: no such source"));
        let child = self.add(Some(module), file);
        self.modules[module].children.insert(name.to_owned(), child);
        self.scan_file(child);
    }

    /// Takes in one tree of a `use`, and tells where it ends.
    fn import(&mut self, module: usize, tokens: &[&str], from: usize, stem: &[&str], is_pub: bool) -> usize {
        let mut path = stem.to_vec();
        let mut at = from;
        loop {
            match tokens[at] {
                "::" => at += 1,
                "{" => {
                    let end = closing(tokens, at);
                    at += 1;
                    while at < end {
                        at = self.import(module, tokens, at, &path, is_pub);
                        at += usize::from(tokens[at] == ",");
                    }
                    return end + 1;
                }
                "*" => {
                    let path: Vec<_> = path.iter().map(|s| s.to_string()).collect();
                    self.named.push(Named {
                        module,
                        path,
                        how: How::Whole,
                    });
                    return at + 1;
                }
                name => {
                    if name != "self" || path.is_empty() {
                        path.push(name);
                    }
                    at += 1;
                    if tokens[at] != "::" {
                        let mut bound = path.last().copied();
                        if tokens[at] == "as" {
                            bound = Some(tokens[at + 1]);
                            at += 2;
                        }
                        let path = path.iter().map(|s| s.to_string()).collect();
                        let how = match is_pub {
                            true => How::Reexported,
                            false => How::Used,
                        };
                        self.bind(module, path, bound, how);
                        return at;
                    }
                }
            }
        }
    }

    fn bind(&mut self, module: usize, path: Vec<String>, bound: Option<&str>, how: How) {
        if let Some(name) = bound
            && name != "_"
        {
            self.modules[module].bound.insert(name.to_owned(), path.clone());
        }
        self.named.push(Named { module, path, how });
    }

    /// What a path leads to that is said in a module.
    fn follow(&self, module: usize, path: &[String], hops: usize) -> Target {
        let mut at = module;
        let mut rest = path;
        let mut is_relative = true;
        while let [first, others @ ..] = rest {
            match first.as_str() {
                "crate" => at = 0,
                "self" => {}
                "super" => at = self.modules[at].parent.unwrap_or(at),
                _ => break,
            }
            (rest, is_relative) = (others, false);
        }
        if rest.is_empty() {
            return Target::Module;
        }
        while let [first, others @ ..] = rest {
            let here = &self.modules[at];
            let child = here.children.get(first).copied();
            let bound = here.bound.get(first).filter(|bound| hops > 0 && *bound != rest);
            // A module and a function may bear one name: at a path's end the function is meant.
            if let Some(bound) = bound
                && (child.is_none() || others.is_empty())
            {
                let whole = [bound, others].concat();
                return self.follow(at, &whole, hops - 1);
            }
            if let Some(child) = child {
                (at, rest, is_relative) = (child, others, false);
                continue;
            }
            if is_relative {
                return Target::Elsewhere;
            }
            return Target::Item(at, first.clone());
        }
        Target::Module
    }

    fn is_below(&self, module: usize, above: usize) -> bool {
        let mut at = Some(module);
        while let Some(module) = at {
            if module == above {
                return true;
            }
            at = self.modules[module].parent;
        }
        false
    }

    fn uses(&self) -> Uses {
        let mut uses = BTreeMap::new();
        let mut note = |from: usize, to: usize, by: String| {
            let (from, to) = (&self.modules[from].file, &self.modules[to].file);
            if from != to {
                uses.entry((from.clone(), to.clone())).or_insert(by);
            }
        };
        const HOPS_MAX: usize = 16;
        for Named { module, path, how } in &self.named {
            match self.follow(*module, path, HOPS_MAX) {
                Target::Item(to, _) if *how == How::Reexported && self.is_below(to, *module) => {}
                Target::Item(to, name) => note(*module, to, name),
                // Nothing would tell what of it is used.
                Target::Module if *how == How::Whole => panic!(
                    "{}: `{}::*`: say what is taken out of the module",
                    self.modules[*module].file,
                    path.join("::")
                ),
                Target::Module | Target::Elsewhere => {}
            }
        }
        let mut adds: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        let of = |block: &Block| match self.follow(block.module, &block.of, HOPS_MAX) {
            Target::Item(module, name) => Some((self.modules[module].file.clone(), name)),
            // A type of this very file.
            _ => Some((self.modules[block.module].file.clone(), block.of.last()?.clone())),
        };
        for block in self.blocks.iter().filter(|block| !block.is_of_trait) {
            let Some(of) = of(block) else { continue };
            for method in &block.methods {
                adds.entry((of.clone(), method.clone()))
                    .or_default()
                    .push(block.module);
            }
        }
        for block in &self.blocks {
            let Some(of) = of(block) else { continue };
            for call in &block.calls {
                let by = adds.get(&(of.clone(), call.clone()));
                for adding in by.into_iter().flatten() {
                    note(block.module, *adding, format!("{}::{call}", of.1));
                }
            }
        }
        Uses(uses)
    }
}

/// The head of an `impl` block: where its body begins, whose it is, and whether it implements a trait.
fn head(tokens: &[&str], at: usize) -> (usize, Vec<String>, bool) {
    let mut depth = 0;
    let mut of: Vec<&str> = Vec::new();
    let mut is_of_trait = false;
    let mut is_over = false;
    let mut body = at + 1;
    while tokens[body] != "{" {
        match tokens[body] {
            "<" => depth += 1,
            ">" if tokens[body - 1] != "-" => depth -= 1,
            "where" => is_over = true,
            "for" if depth == 0 && tokens[body + 1] != "<" && !is_over => {
                is_of_trait = true;
                of.clear();
            }
            "dyn" | "mut" => {}
            name if depth == 0 && is_name(name) && !is_over => of.push(name),
            _ => {}
        }
        body += 1;
    }
    (body, of.into_iter().map(str::to_owned).collect(), is_of_trait)
}

/// Names and signs of a source; of a literal no more than that there is one.
fn tokens(source: &str) -> Vec<&str> {
    let is_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let name = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
        let quoted = rest[name..].trim_start_matches('#');
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment(rest)
        } else if matches!(&rest[..name], "" | "b" | "c")
            && quoted.len() == rest.len() - name
            && quoted.starts_with('"')
        {
            tokens.push("\"");
            name + string(quoted)
        } else if matches!(&rest[..name], "r" | "br" | "cr") && quoted.starts_with('"') {
            tokens.push("\"");
            let hashes = &rest[name..rest.len() - quoted.len()];
            let end = format!("\"{hashes}");
            let opened = name + end.len();
            opened + rest[opened..].find(&end).expect("a raw string ends") + end.len()
        } else if matches!(&rest[..name], "" | "b") && quoted.starts_with('\'') {
            tokens.push("'");
            name + character(quoted)
        } else if name > 0 {
            // Numbers come along: nothing bears a name that begins with a digit.
            tokens.push(&rest[..name]);
            name
        } else if rest.starts_with("::") {
            tokens.push("::");
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(&rest[..first.len_utf8()]);
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

fn comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    loop {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().expect("a comment ends").len_utf8();
        }
    }
}

fn string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    panic!("a string ends")
}

/// A character with its quotes; of a lifetime its mark alone.
fn character(text: &str) -> usize {
    let mut inside = text.char_indices().skip(1);
    match inside.next() {
        Some((_, '\\')) => {
            let at = text[3..].find('\'').expect("a character ends");
            at + 4
        }
        _ => match inside.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Where the bracket ends that opens here.
fn closing(tokens: &[&str], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match *token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth -= 1;
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    panic!(
        "a bracket that does not close: {:?}",
        &tokens[open..tokens.len().min(open + 20)]
    )
}

/// Leaves out attributes, how far something is visible, and what stands under `#[cfg(test)]`.
fn without_tests<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let mut left = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at..] {
            ["#", "[", ..] | ["#", "!", "[", ..] => {
                let open = at + 1 + usize::from(tokens[at + 1] == "!");
                let end = closing(tokens, open);
                let is_of_tests = matches!(
                    tokens[open + 1..end],
                    ["cfg", "(", "test" | "doctest", ")"] | ["cfg", "(", "all", "(", "test", ..]
                );
                at = match is_of_tests {
                    true => end_of_item(tokens, end + 1),
                    false => end + 1,
                };
            }
            ["pub", "(", "crate" | "super" | "self" | "in", ..] => {
                left.push("pub");
                at = closing(tokens, at + 1) + 1;
            }
            [token, ..] => {
                left.push(token);
                at += 1;
            }
            [] => break,
        }
    }
    left
}

/// Where the item, the statement, the field or the arm ends that begins here.
fn end_of_item(tokens: &[&str], from: usize) -> usize {
    const ITEMS: [&str; 16] = [
        "async",
        "const",
        "enum",
        "extern",
        "fn",
        "impl",
        "let",
        "macro_rules",
        "mod",
        "static",
        "struct",
        "thread_local",
        "trait",
        "type",
        "unsafe",
        "use",
    ];
    let mut at = from;
    while tokens[at] == "#" {
        at = closing(tokens, at + 1) + 1;
    }
    let mut kind = at + usize::from(tokens[at] == "pub");
    if kind > at && tokens[kind] == "(" {
        kind = closing(tokens, kind) + 1;
    }
    let is_item = ITEMS.contains(&tokens[kind]);
    while at < tokens.len() {
        match tokens[at] {
            ";" => return at + 1,
            "," if !is_item => return at + 1,
            "{" if is_item && !matches!(tokens[kind], "use" | "let" | "static") => {
                return closing(tokens, at) + 1;
            }
            "(" | "[" | "{" => at = closing(tokens, at) + 1,
            ")" | "]" | "}" => return at,
            _ => at += 1,
        }
    }
    at
}

/// The circles among made-up sources, each as its files in order.
fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let sources = files
        .iter()
        .map(|(path, source)| (format!("src/{path}"), (*source).to_owned()))
        .collect();
    let told = uses(&sources, "src/lib.rs").circles();
    let files = |told: String| {
        let lines = told.lines().map(|line| {
            let line = line.trim_start().trim_start_matches("uses ");
            line.split(' ')
                .next()
                .unwrap_or("")
                .trim_start_matches("src/")
                .to_owned()
        });
        let mut files: Vec<_> = lines.collect();
        assert_eq!(
            files.pop(),
            files.first().cloned(),
            "a circle ends where it begins"
        );
        files
    };
    told.into_iter().map(files).collect()
}

/// Its name, its files, and those of its circle.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

#[test]
fn a_circle_is_found_whatever_it_is_made_of() {
    let cases: [Case; 10] = [
        (
            "two imports",
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "use crate::b::B; pub struct A;"),
                ("b.rs", "use super::a::A; pub struct B;"),
            ],
            &["a.rs", "b.rs"],
        ),
        (
            "three files",
            &[
                ("lib.rs", "mod a; mod b; mod c;"),
                ("a.rs", "use crate::{b::{self, B}, c as _}; pub struct A;"),
                ("b.rs", "pub struct B; fn f() { crate::c::f::<u8>() }"),
                ("c.rs", "fn f<T>() -> Option<super::a::A> { None }"),
            ],
            &["a.rs", "b.rs", "c.rs"],
        ),
        (
            "a parent that calls its child, which names the parent's type",
            &[
                ("lib.rs", "mod a; pub struct Owner; fn f() { a::g() }"),
                ("a.rs", "use super::Owner; pub fn g() {}"),
            ],
            &["a.rs", "lib.rs"],
        ),
        (
            "a parent that works with what it re-exports",
            &[
                ("lib.rs", "mod a; pub use a::A; pub struct Owner(A);"),
                ("a.rs", "pub struct A; fn f(_: crate::Owner) {}"),
            ],
            &["a.rs", "lib.rs"],
        ),
        (
            "a parent whose type the child implements on",
            &[
                (
                    "lib.rs",
                    "mod a; pub struct Owner; impl Owner { fn f(&self) { self.g() } }",
                ),
                (
                    "a.rs",
                    "use super::Owner; impl Owner { pub(super) fn g(&self) {} }",
                ),
            ],
            &["a.rs", "lib.rs"],
        ),
        (
            "two files that implement on one type, and call each other",
            &[
                ("lib.rs", "mod a; mod b; mod owner;"),
                ("owner.rs", "pub struct Owner<T>(T);"),
                (
                    "a.rs",
                    "impl<T> crate::owner::Owner<T> { fn f(&self) { Self::g() } }",
                ),
                (
                    "b.rs",
                    "use crate::owner::Owner; impl<T: Fn() -> u8> Owner<T> { fn g() {} fn h(&self) { self.f() } }",
                ),
            ],
            &["a.rs", "b.rs"],
        ),
        (
            "through doors",
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a/mod.rs", "mod inner; pub use inner::A;"),
                ("a/inner.rs", "use crate::b; pub struct A(b::B);"),
                ("b.rs", "pub mod inner; pub(crate) use self::inner::B;"),
                ("b/inner.rs", "use crate::a::A; pub struct B;"),
            ],
            &["a/inner.rs", "b/inner.rs"],
        ),
        (
            "from a module in braces",
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "mod within { use super::super::b::B; } pub struct A;"),
                ("b.rs", "use crate::a::A; pub struct B;"),
            ],
            &["a.rs", "b.rs"],
        ),
        (
            "behind a feature",
            &[
                ("lib.rs", "mod a; #[cfg(any(test, feature = \"x\"))] mod b;"),
                ("a.rs", "#[cfg(feature = \"x\")] use crate::b::B; pub struct A;"),
                ("b.rs", "use crate::a::A; pub struct B;"),
            ],
            &["a.rs", "b.rs"],
        ),
        (
            "behind what looks like the end of a text",
            &[
                ("lib.rs", "mod a; mod b;"),
                (
                    "a.rs",
                    "const C: char = '\"'; fn f<'a>() { r#\"\"\"#; b'\\''; crate::b::g() } pub struct A;",
                ),
                ("b.rs", "use crate::a::A; /* /* \" */ */ pub fn g() {}"),
            ],
            &["a.rs", "b.rs"],
        ),
    ];
    for (name, files, expected) in cases {
        assert_eq!(circles_of(files), [expected], "{name}");
    }
}

#[test]
fn none_is_found_where_none_is() {
    let cases: [Case; 9] = [
        (
            "a door, and what lies behind it",
            &[
                ("lib.rs", "mod a; mod b; pub use a::A; pub(crate) use b::{B, g};"),
                ("a.rs", "use crate::B; pub struct A(B);"),
                ("b.rs", "pub struct B; pub fn g() {}"),
            ],
            &[],
        ),
        (
            "siblings that find each other through their parent, in one direction",
            &[
                ("lib.rs", "mod a; mod b; use a::A; fn f(_: A) { b::g() }"),
                ("a.rs", "pub struct A; impl A { pub fn f(&self) { self.g() } fn g(&self) {} }"),
                ("b.rs", "pub fn g(_: super::A) {}"),
            ],
            &[],
        ),
        (
            "a type below what implements on it",
            &[
                ("lib.rs", "mod a; mod owner; fn f(o: owner::Owner) { a::g(&o) }"),
                ("owner.rs", "pub struct Owner; impl Owner { pub fn h(&self) {} }"),
                ("a.rs", "use crate::owner::Owner; impl Owner { fn i(&self) { self.h() } } pub fn g(o: &Owner) { o.i() }"),
            ],
            &[],
        ),
        (
            "tests",
            &[
                ("lib.rs", "mod a; mod b; pub struct Owner; #[cfg(test)] mod tests;"),
                ("a.rs", "pub struct A; #[cfg(test)] use crate::b::B; #[cfg(test)] mod tests { use crate::b::B; }"),
                (
                    "b.rs",
                    "use super::a::A; pub struct B { #[cfg(test)] pub(crate) seen: super::Owner, a: A }
                     #[cfg(test)] impl B { fn f(&self) -> Vec<(u8, super::Owner)> { Vec::new() } }",
                ),
                ("tests.rs", "use super::a::A; use super::*;"),
            ],
            &[],
        ),
        (
            "what stands in comments, texts and attributes",
            &[
                ("lib.rs", "mod a; mod b;"),
                (
                    "a.rs",
                    "//! See crate::b::B.
                     /* crate::b::B */ #[doc(alias = crate::b::B)] pub struct A<'a>(&'a str);
                     const TEXT: &str = \"crate::b::B\\\"crate::b::B\"; const MORE: &str = r#\"\"crate::b::B\"#;",
                ),
                ("b.rs", "use crate::a::A; pub struct B;"),
            ],
            &[],
        ),
        (
            "how far something is visible",
            &[
                ("lib.rs", "mod a;"),
                ("a/mod.rs", "pub mod b; mod c; fn f() { b::f(c::C) }"),
                ("a/b.rs", "pub(in crate::a) fn f(_: super::c::C) {}"),
                ("a/c.rs", "pub(super) struct C(pub(crate) u8, pub (u8, u8));"),
            ],
            &[],
        ),
        (
            "names that other crates have too",
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "use std::b::B; use b::B as C; fn f() { other::b::g(std::b::h()) }"),
                ("b.rs", "use crate::a::f;"),
            ],
            &[],
        ),
        (
            "methods that look alike",
            &[
                ("lib.rs", "mod a; mod b; mod owner;"),
                ("owner.rs", "pub struct Owner(Vec<u8>); impl Owner { fn f(&self) { self.0.extra() } }"),
                ("a.rs", "use crate::owner::Owner; impl Owner { fn extra(&self) {} }"),
                ("b.rs", "use crate::a::x; pub struct B; impl B { fn f(&self) { self.extra() } fn extra(&self) {} }"),
            ],
            &[],
        ),
        (
            "a module and a function of one name",
            &[
                ("lib.rs", "mod a; mod b; pub use b::{b, C};"),
                ("a.rs", "pub fn f() { crate::b(crate::b::C) }"),
                ("b.rs", "pub struct C; pub fn b(_: C) {}"),
            ],
            &[],
        ),
    ];
    for (name, files, expected) in cases {
        assert_eq!(circles_of(files), [expected; 0], "{name}");
    }
}

#[test]
#[should_panic(expected = "`super::b::*`: say what is taken out of the module")]
fn a_module_that_is_imported_whole_is_refused() {
    circles_of(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use super::b::*;"),
        ("b.rs", "pub enum B { C }"),
    ]);
}
