//! Which file imports what from which other file.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proc_macro2::{Spacing, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Expr, ImplItem, Item, ItemUse, Macro, Path, Stmt, TraitItem, Visibility};

use super::cfg;
use super::tree::{self, ModuleId, Target, Tree};

/// What one file imports from another.
pub struct Import {
    /// The first line that does.
    pub line: usize,
    names: BTreeSet<String>,
}

impl Import {
    /// The imported file with the names, for a message.
    pub fn what(&self, file: &str) -> String {
        format!("{file} ({})", Vec::from_iter(self.names.iter().map(String::as_str)).join(", "))
    }
}

/// From the importing file and the one that defines what it imports.
pub type Uses = BTreeMap<(String, String), Import>;

/// Reads all paths of all modules: those in `use` trees, and those in types, expressions, patterns and macros.
///
/// An import goes to the file that defines the name, past every `pub use` on the way. A module is a name space: importing it
/// does not count, but what is named through it does. Likewise, a module that re-exports what its own child modules define
/// does not import it, unless it uses the name itself.
pub fn find(tree: &Tree) -> Uses {
    let mut uses = Uses::new();
    for (id, module) in tree.modules() {
        let mut reader = Reader { tree, id, uses: &mut uses, blocks: Vec::new() };
        for item in &module.items {
            reader.visit_item(item);
        }
    }
    uses
}

struct Reader<'a> {
    tree: &'a Tree,
    id: ModuleId,
    uses: &'a mut Uses,
    /// The names that the blocks around this place have imported.
    blocks: Vec<HashMap<String, Vec<String>>>,
}

impl Reader<'_> {
    /// Enters the import of what `path` leads to.
    fn path(&mut self, path: &[String], line: usize) {
        let Some(first) = path.first() else { return };
        let local = self.blocks.iter().rev().find_map(|names| names.get(first));
        let whole = local.map(|start| [start, &path[1..]].concat());
        for target in self.tree.resolve(self.id, whole.as_deref().unwrap_or(path)) {
            if let Target::Item { file, name } = target {
                self.import(file, name, line);
            }
        }
    }

    fn import(&mut self, to: String, name: String, line: usize) {
        let from = self.tree.module(self.id).file.clone();
        if from == to {
            return;
        }
        let import = self.uses.entry((from, to)).or_insert_with(|| Import { line, names: BTreeSet::new() });
        import.line = import.line.min(line);
        import.names.insert(name);
    }

    /// Reads the paths of two and more segments in the arguments of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end_of(&mut path, line);
                        line = ident.span().start().line;
                    }
                    path.push(tree::plain(&ident));
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() && colons < 2 => {
                    let goes_on = colons == 1 || punct.spacing() == Spacing::Joint;
                    colons = if goes_on { colons + 1 } else { 3 };
                }
                other => {
                    self.end_of(&mut path, line);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.end_of(&mut path, line);
    }

    fn end_of(&mut self, path: &mut Vec<String>, line: usize) {
        if path.len() > 1 {
            self.path(path, line);
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !self.tree.leaves_out(cfg::of_item(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if !self.tree.leaves_out(cfg::of_impl_item(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        if !self.tree.leaves_out(cfg::of_trait_item(item)) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !self.tree.leaves_out(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !self.tree.leaves_out(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !self.tree.leaves_out(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_stmt_macro(&mut self, statement: &'ast syn::StmtMacro) {
        if !self.tree.leaves_out(&statement.attrs) {
            visit::visit_stmt_macro(self, statement);
        }
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        if !self.tree.leaves_out(cfg::of_expression(expression)) {
            visit::visit_expr(self, expression);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !self.tree.leaves_out(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    /// Attributes and visibilities name paths, but need nothing from them.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let exports = !matches!(item.vis, Visibility::Inherited);
        for import in tree::imports(&item.tree) {
            let glob = import.name == "*";
            for target in self.tree.resolve(self.id, &import.path) {
                let (file, name) = match target {
                    Target::Module(id) if glob => (self.tree.module(id).file.clone(), "*".to_owned()),
                    Target::Module(_) => continue,
                    Target::Item { file, name } if glob => (file, format!("{name}::*")),
                    Target::Item { file, name } => (file, name),
                };
                if !(exports && self.tree.is_below(&file, self.id)) {
                    self.import(file, name, import.line);
                }
            }
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let mut names = HashMap::new();
        for statement in &block.stmts {
            if let Stmt::Item(Item::Use(item)) = statement {
                names.extend(tree::imports(&item.tree).into_iter().map(|import| (import.name, import.path)));
            }
        }
        self.blocks.push(names);
        visit::visit_block(self, block);
        self.blocks.pop();
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            let line = first.ident.span().start().line;
            let names: Vec<String> = path.segments.iter().map(|segment| tree::plain(&segment.ident)).collect();
            self.path(&names, line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast Macro) {
        if let Some(ident) = invocation.path.get_ident() {
            let name = tree::plain(ident);
            let line = ident.span().start().line;
            for &id in self.tree.macros(&name) {
                self.import(self.tree.module(id).file.clone(), format!("{name}!"), line);
            }
        } else {
            self.visit_path(&invocation.path);
        }
        self.tokens(invocation.tokens.clone());
    }
}
