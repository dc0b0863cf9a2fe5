//! The modules of the library and the program, with the names that each defines and the files they are in.

use std::collections::{BTreeMap, HashMap, HashSet};

use syn::{Attribute, Expr, Item, ItemMod, Lit, Meta, UseTree};

use super::cfg;

/// The name of the library as the program spells it.
const LIBRARY: &str = "doorward";

/// Index of a module in a [`Tree`].
pub type ModuleId = usize;

/// What a name stands for.
#[derive(Clone)]
enum Definition {
    Module(ModuleId),
    /// Defined in the module's own file.
    Item,
    /// A macro that this module exports.
    Exported(ModuleId),
    /// Imported from this path.
    Import(Vec<String>),
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a module.
    Module(ModuleId),
    /// To an item defined in this file, or to something inside that item.
    Item {
        /// The file.
        file: String,
        /// The item's name.
        name: String,
    },
}

/// Which code is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// What is compiled into the hypervisor.
    #[default]
    Production,
    /// That, and what is compiled for tests only.
    WithTests,
}

/// A module.
pub struct Module {
    /// The file it is written in.
    pub file: String,
    /// What it contains, without the modules.
    pub items: Vec<Item>,
    parent: Option<ModuleId>,
    root: ModuleId,
    names: HashMap<String, Vec<Definition>>,
    globs: Vec<Vec<String>>,
}

/// All modules.
#[derive(Default)]
pub struct Tree {
    scope: Scope,
    modules: Vec<Module>,
    library: Option<ModuleId>,
    /// Modules that define a macro of this name; `macro_rules!` names follow the text, not the modules.
    macros: HashMap<String, Vec<ModuleId>>,
}

impl Tree {
    /// Follows the `mod` declarations from both roots.
    pub fn parse(sources: &BTreeMap<String, String>, scope: Scope) -> Result<Self, String> {
        let mut tree = Self { scope, ..Self::default() };
        for root in ["src/lib.rs", "src/main.rs"] {
            if let Some(text) = sources.get(root) {
                let id = tree.file(root, text, "src", None, sources)?;
                tree.library.get_or_insert(id);
            }
        }
        Ok(tree)
    }

    /// The modules and their indices.
    pub fn modules(&self) -> impl Iterator<Item = (ModuleId, &Module)> {
        self.modules.iter().enumerate()
    }

    /// The files of all modules.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(|module| module.file.as_str())
    }

    /// Do these attributes put an item out of the scope?
    pub fn leaves_out(&self, attributes: &[Attribute]) -> bool {
        self.scope == Scope::Production && cfg::test_only(attributes)
    }

    /// One module.
    pub fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id]
    }

    /// Is `file` that of a module below `id`?
    pub fn is_below(&self, file: &str, id: ModuleId) -> bool {
        let parent = |&id: &ModuleId| self.modules[id].parent;
        let modules = self.modules.iter().filter(|module| module.file == file);
        modules
            .filter_map(|module| module.parent)
            .any(|above| std::iter::successors(Some(above), parent).any(|a| a == id))
    }

    /// Parses a file into a module; its child modules are in `folder`.
    fn file(
        &mut self,
        name: &str,
        text: &str,
        folder: &str,
        parent: Option<ModuleId>,
        sources: &BTreeMap<String, String>,
    ) -> Result<ModuleId, String> {
        let file = syn::parse_file(text).map_err(|error| format!("{name}:{}: {error}", error.span().start().line))?;
        self.add(name, file.items, folder, parent, sources)
    }

    fn add(
        &mut self,
        file: &str,
        items: Vec<Item>,
        folder: &str,
        parent: Option<ModuleId>,
        sources: &BTreeMap<String, String>,
    ) -> Result<ModuleId, String> {
        let id = self.modules.len();
        let root = parent.map_or(id, |parent| self.modules[parent].root);
        let file = file.to_owned();
        self.modules.push(Module { file, items: vec![], parent, root, names: HashMap::new(), globs: vec![] });
        for item in items {
            if self.leaves_out(cfg::of_item(&item)) {
                continue;
            }
            match item {
                Item::Mod(module) => {
                    let name = plain(&module.ident);
                    let child = self.child(id, module, folder, sources)?;
                    self.define(id, name, Definition::Module(child));
                }
                item => {
                    self.names_of(id, &item);
                    self.modules[id].items.push(item);
                }
            }
        }
        Ok(id)
    }

    /// The module that a `mod` item declares or contains.
    fn child(
        &mut self,
        parent: ModuleId,
        module: ItemMod,
        folder: &str,
        sources: &BTreeMap<String, String>,
    ) -> Result<ModuleId, String> {
        let inner = format!("{folder}/{}", plain(&module.ident));
        if let Some((_, items)) = module.content {
            let file = self.modules[parent].file.clone();
            return self.add(&file, items, &inner, Some(parent), sources);
        }
        let mut candidates = vec![format!("{inner}.rs"), format!("{inner}/mod.rs")];
        for attribute in module.attrs.iter().filter(|attribute| attribute.path().is_ident("path")) {
            if let Meta::NameValue(pair) = &attribute.meta
                && let Expr::Lit(literal) = &pair.value
                && let Lit::Str(path) = &literal.lit
            {
                // Relative to the folder that the declaring file is in.
                let beside = self.modules[parent].file.rsplit_once('/').map_or("", |(folder, _)| folder);
                candidates = vec![plain_path(&format!("{beside}/{}", path.value()))];
            }
        }
        for name in &candidates {
            if let Some(text) = sources.get(name) {
                return self.file(name, text, &inner, Some(parent), sources);
            }
        }
        Err(format!("{}: no file for `mod {}`", self.modules[parent].file, module.ident))
    }

    fn define(&mut self, module: ModuleId, name: String, definition: Definition) {
        self.modules[module].names.entry(name).or_default().push(definition);
    }

    /// Enters the names that an item defines.
    fn names_of(&mut self, id: ModuleId, item: &Item) {
        let ident = match item {
            Item::Const(item) => &item.ident,
            Item::Enum(item) => &item.ident,
            Item::Fn(item) => &item.sig.ident,
            Item::Static(item) => &item.ident,
            Item::Struct(item) => &item.ident,
            Item::Trait(item) => &item.ident,
            Item::Type(item) => &item.ident,
            Item::Union(item) => &item.ident,
            Item::Macro(item) => {
                let Some(ident) = &item.ident else { return };
                let name = plain(ident);
                self.macros.entry(name.clone()).or_default().push(id);
                if item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
                    // An exported macro is an item of the root, too.
                    let root = self.modules[id].root;
                    self.define(root, name, Definition::Exported(id));
                }
                ident
            }
            Item::Use(item) => {
                for import in imports(&item.tree) {
                    if import.name == "*" {
                        self.modules[id].globs.push(import.path);
                    } else {
                        self.define(id, import.name, Definition::Import(import.path));
                    }
                }
                return;
            }
            _ => return,
        };
        self.define(id, plain(ident), Definition::Item);
    }

    /// The modules in whose text a macro of this name is defined.
    pub fn macros(&self, name: &str) -> &[ModuleId] {
        self.macros.get(name).map_or(&[], Vec::as_slice)
    }

    /// Where `path`, written in module `from`, leads. Empty for paths into other crates, preludes and local names. There can
    /// be several targets, as a type, a value and a macro may share a name.
    pub fn resolve(&self, from: ModuleId, path: &[String]) -> Vec<Target> {
        self.walk(from, path, &mut HashSet::new())
    }

    fn walk(&self, from: ModuleId, path: &[String], open: &mut HashSet<(ModuleId, String)>) -> Vec<Target> {
        let Some((first, rest)) = path.split_first() else {
            return Vec::new();
        };
        let module = &self.modules[from];
        let start = match (first.as_str(), self.library) {
            ("crate", _) => vec![Target::Module(module.root)],
            ("self", _) => vec![Target::Module(from)],
            ("super", _) => module.parent.map(Target::Module).into_iter().collect(),
            (LIBRARY, Some(library)) if library != module.root => vec![Target::Module(library)],
            _ => self.look_up(from, first, open),
        };
        let mut targets: Vec<Target> = Vec::new();
        for target in start {
            for end in self.descend(target, rest, open) {
                if !targets.contains(&end) {
                    targets.push(end);
                }
            }
        }
        targets
    }

    /// Follows the rest of a path from a module or an item.
    fn descend(&self, target: Target, rest: &[String], open: &mut HashSet<(ModuleId, String)>) -> Vec<Target> {
        let (Some((name, rest)), &Target::Module(id)) = (rest.split_first(), &target) else {
            return vec![target];
        };
        if name == "super" {
            let parent = self.modules[id].parent.map(Target::Module);
            return parent.into_iter().flat_map(|parent| self.descend(parent, rest, open)).collect();
        }
        let known = self.look_up(id, name, open);
        if known.is_empty() && !open.contains(&(id, name.clone())) {
            // A macro of that module has made it.
            return vec![Target::Item { file: self.modules[id].file.clone(), name: name.clone() }];
        }
        // When a path goes on, a module or type is meant, and a function of the same name is not.
        let onward = known.iter().any(|target| matches!(target, Target::Module(_))) && !rest.is_empty();
        let known = known.into_iter().filter(|target| !onward || matches!(target, Target::Module(_)));
        known.flat_map(|target| self.descend(target, rest, open)).collect()
    }

    /// What `name` stands for in a module. `open` holds the names that are being looked up, as imports may be circular.
    fn look_up(&self, id: ModuleId, name: &str, open: &mut HashSet<(ModuleId, String)>) -> Vec<Target> {
        if !open.insert((id, name.to_owned())) {
            return Vec::new();
        }
        let module = &self.modules[id];
        let mut targets = Vec::new();
        for definition in module.names.get(name).into_iter().flatten() {
            match definition {
                Definition::Module(child) => targets.push(Target::Module(*child)),
                Definition::Item => targets.push(Target::Item { file: module.file.clone(), name: name.to_owned() }),
                Definition::Exported(home) => {
                    targets.push(Target::Item { file: self.modules[*home].file.clone(), name: name.to_owned() });
                }
                Definition::Import(path) if path.first().is_some_and(|first| first == name) => {
                    // `use name::…`: that first name is what this module declares, and not this import itself.
                    let declared = module.names[name].iter().find_map(|other| match other {
                        Definition::Module(child) => Some(Target::Module(*child)),
                        _ => None,
                    });
                    targets.extend(declared.into_iter().flat_map(|child| self.descend(child, &path[1..], open)));
                }
                Definition::Import(path) => targets.extend(self.walk(id, path, open)),
            }
        }
        if targets.is_empty() && !module.names.contains_key(name) {
            for glob in &module.globs {
                for target in self.walk(id, glob, open) {
                    if let Target::Module(inner) = target {
                        targets.extend(self.look_up(inner, name, open));
                    }
                }
            }
        }
        open.remove(&(id, name.to_owned()));
        targets
    }
}

/// A path without `..`.
fn plain_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        if part != ".." || parts.pop().is_none() {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// One name that a `use` brings in.
pub struct Import {
    /// The name it has from then on; `*` for a glob, whose path is the module's.
    pub name: String,
    /// What is imported.
    pub path: Vec<String>,
    /// The line it is on.
    pub line: usize,
}

/// The names that a `use` tree brings in.
pub fn imports(tree: &UseTree) -> Vec<Import> {
    let mut found = Vec::new();
    flatten(tree, &mut Vec::new(), &mut found);
    found
}

fn flatten(tree: &UseTree, prefix: &mut Vec<String>, found: &mut Vec<Import>) {
    let mut leaf = |ident: &syn::Ident, name: String| {
        let line = ident.span().start().line;
        let mut path = prefix.clone();
        if ident != "self" || path.is_empty() {
            path.push(plain(ident));
        }
        found.push(Import { name, path, line });
    };
    match tree {
        UseTree::Name(name) if name.ident == "self" => {
            let last = prefix.last().cloned().unwrap_or_default();
            leaf(&name.ident, last);
        }
        UseTree::Name(name) => leaf(&name.ident, plain(&name.ident)),
        UseTree::Rename(rename) => leaf(&rename.ident, plain(&rename.rename)),
        UseTree::Glob(glob) => {
            let line = glob.star_token.spans[0].start().line;
            found.push(Import { name: "*".to_owned(), path: prefix.clone(), line });
        }
        UseTree::Path(path) => {
            prefix.push(plain(&path.ident));
            flatten(&path.tree, prefix, found);
            prefix.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, prefix, found);
            }
        }
    }
}

/// An identifier without `r#`.
pub fn plain(ident: &syn::Ident) -> String {
    let name = ident.to_string();
    name.strip_prefix("r#").map_or(name.clone(), str::to_owned)
}
