//! Which parts of a page are the site and not the page: menus, banners, footers, tables of contents, "see also" lists.
//!
//! Judged by what authors say (element, ARIA role, class and id), on the words that documentation generators and content
//! systems really use. Nothing is judged by its text.

use super::dom::{Dom, NodeId};

/// Elements that never hold text to read.
const HARD: &[&str] = &[
    "script", "style", "noscript", "template", "head", "iframe", "object", "embed", "canvas",
    "svg", "audio", "video", "map", "button", "select", "input", "textarea", "datalist", "rp",
    "frameset", "meta", "link",
];

/// Words in `class` or `id` that name the furniture of a site.
const FURNITURE: &[&str] = &[
    "nav",
    "navbar",
    "navigation",
    "navheader",
    "navfooter",
    "docnav",
    "nav-bar",
    "navbox",
    "topnav",
    "sidenav",
    "breadcrumb",
    "breadcrumbs",
    "menu",
    "main-menu",
    "menubar",
    "sidebar",
    "sphinxsidebar",
    "toc",
    "table-of-contents",
    "localtoc",
    "site-header",
    "site-footer",
    "page-footer",
    "footer",
    "skip-link",
    "skiplink",
    "pagination",
    "pager",
    "banner",
    "cookie-banner",
    "cookie-consent",
    "advertisement",
    "ads",
    "social",
    "share-buttons",
    "related",
    "relatedtopics",
    "related-topics",
    "related-links",
    "related-posts",
    "relatedlinks",
    "seealso-links",
    "headerlink",
    "editsection",
    "mw-editsection",
    "noprint",
    "printfooter",
    "screen-reader-text",
    "donation",
    "donate",
];

const ROLES: &[&str] = &[
    "navigation",
    "banner",
    "contentinfo",
    "search",
    "menu",
    "menubar",
    "complementary",
    "dialog",
    "alertdialog",
];

/// Whether nothing below this element is text at all.
pub(super) fn is_hard(dom: &Dom, node: NodeId) -> bool {
    HARD.contains(&dom.name(node)) || (is_hidden(dom, node) && !is_chosen_variant(dom, node))
}

fn is_hidden(dom: &Dom, node: NodeId) -> bool {
    dom.attr(node, "hidden").is_some()
}

/// Pages written for several systems hide all variants of a phrase and let a script show one. Without the script the
/// reader is best served by one variant of a phrase (the last is the default by custom), and by all variants of longer
/// passages.
fn is_chosen_variant(dom: &Dom, node: NodeId) -> bool {
    let Some(parent) = dom.nodes[node].parent else {
        return false;
    };
    let mut variants = dom
        .children(parent)
        .iter()
        .copied()
        .filter(|child| !dom.name(*child).is_empty());
    let Some(last) = variants.clone().next_back() else {
        return false;
    };
    variants.clone().nth(1).is_some()
        && variants.all(|child| is_hidden(dom, child))
        && (node == last || dom.name(node) != "span")
}

/// Whether this element belongs to the site and not to the page.
pub(super) fn is_furniture(dom: &Dom, node: NodeId) -> bool {
    match dom.name(node) {
        "" | "html" | "body" | "main" | "article" => return false,
        "nav" | "menu" | "dialog" => return true,
        // A page has its own header and footer; so do articles and sections, and those are content.
        "header" | "footer" | "aside" if !in_article(dom, node) => return true,
        _ => {}
    }
    if dom
        .attr(node, "role")
        .is_some_and(|role| ROLES.contains(&role))
    {
        return true;
    }
    if dom.attr(node, "aria-hidden") == Some("true") {
        return true;
    }
    if dom
        .attr(node, "style")
        .is_some_and(|style| style.replace(' ', "").contains("display:none"))
    {
        return true;
    }
    let named = |attr: &str| {
        let words = dom.attr(node, attr).unwrap_or_default();
        words.split_ascii_whitespace().any(|word| {
            FURNITURE
                .iter()
                .any(|known| word.eq_ignore_ascii_case(known))
        })
    };
    named("class") || named("id")
}

fn in_article(dom: &Dom, node: NodeId) -> bool {
    std::iter::successors(dom.nodes[node].parent, |node| dom.nodes[*node].parent)
        .any(|node| matches!(dom.name(node), "article" | "main" | "section"))
}
