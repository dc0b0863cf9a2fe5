//! Which items are compiled for tests only.

use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, ImplItem, Item, Meta, Token, TraitItem};

/// Do these attributes exclude an item from every build that is not a test?
pub fn test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        path.is_ident("test")
            || path.is_ident("cfg") && attribute.parse_args::<Meta>().is_ok_and(|predicate| implies_test(&predicate))
    })
}

/// Can the predicate of a `cfg` only hold in a test build?
fn implies_test(predicate: &Meta) -> bool {
    let Meta::List(list) = predicate else {
        return predicate.path().is_ident("test");
    };
    let Ok(parts) = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) else {
        return false;
    };
    match list.path.get_ident().map(ToString::to_string).as_deref() {
        Some("all") => parts.iter().any(implies_test),
        Some("any") => !parts.is_empty() && parts.iter().all(implies_test),
        _ => false,
    }
}

macro_rules! attributes {
    ($item:expr, $kind:ident: $($variant:ident)*) => {
        match $item {
            $($kind::$variant(item) => &item.attrs,)*
            _ => &[],
        }
    };
}

/// The attributes of an item.
pub fn of_item(item: &Item) -> &[Attribute] {
    attributes!(item, Item: Const Enum ExternCrate Fn ForeignMod Impl Macro Mod Static Struct Trait Type Union Use)
}

/// The attributes of an item of an `impl`.
pub fn of_impl_item(item: &ImplItem) -> &[Attribute] {
    attributes!(item, ImplItem: Const Fn Type Macro)
}

/// The attributes of an item of a trait.
pub fn of_trait_item(item: &TraitItem) -> &[Attribute] {
    attributes!(item, TraitItem: Const Fn Type Macro)
}

/// The attributes of an expression that can be a statement with an attribute of its own.
pub fn of_expression(expression: &Expr) -> &[Attribute] {
    attributes!(expression, Expr: Assign Block Call ForLoop If Loop Macro Match MethodCall Struct Tuple Unsafe While)
}
