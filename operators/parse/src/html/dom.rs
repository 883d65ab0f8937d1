//! The tree that `html5ever` builds: nodes in one vector, children as indices, so that a page costs few allocations and a
//! page nested a million deep is dropped without recursion.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};
use html5ever::tree_builder::{
    ElementFlags, NodeOrText, QuirksMode, TreeBuilder, TreeBuilderOpts, TreeSink,
};
use html5ever::{Attribute, LocalName, Namespace, QualName};

/// Index of a node in [`Dom::nodes`].
pub(super) type NodeId = usize;

pub(super) const ROOT: NodeId = 0;

pub(super) enum Data {
    /// The document, and everything that is neither element nor text.
    Other,
    Element {
        name: QualName,
        attrs: Vec<Attribute>,
    },
    Text(StrTendril),
}

pub(super) struct Node {
    pub(super) parent: Option<NodeId>,
    pub(super) children: Vec<NodeId>,
    pub(super) data: Data,
}

pub(super) struct Dom {
    pub(super) nodes: Vec<Node>,
}

impl Dom {
    pub(super) fn parse(text: &str) -> Dom {
        let options = TreeBuilderOpts {
            scripting_enabled: false,
            ..TreeBuilderOpts::default()
        };
        let builder = TreeBuilder::new(Sink::new(text.len()), options);
        let sink = Filter {
            inner: builder,
            is_xhtml: is_xhtml(text),
            depth: Cell::new(0),
        };
        let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
        let queue = BufferQueue::default();
        queue.push_back(StrTendril::from_slice(text));
        // The tokenizer pauses after each script, where a browser would run it.
        while !queue.is_empty() {
            let _ = tokenizer.feed(&queue);
        }
        tokenizer.end();
        tokenizer.sink.inner.sink.finish()
    }

    /// The element's name, empty for anything else.
    pub(super) fn name(&self, node: NodeId) -> &str {
        match &self.nodes[node].data {
            Data::Element { name, .. } => &name.local,
            _ => "",
        }
    }

    pub(super) fn attr(&self, node: NodeId, wanted: &str) -> Option<&str> {
        let Data::Element { attrs, .. } = &self.nodes[node].data else {
            return None;
        };
        let attr = attrs.iter().find(|attr| &*attr.name.local == wanted);
        attr.map(|attr| &*attr.value)
    }

    pub(super) fn children(&self, node: NodeId) -> &[NodeId] {
        &self.nodes[node].children
    }

    /// All nodes below `node` in document order.
    pub(super) fn descendants(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let mut stack: Vec<NodeId> = self.children(node).iter().rev().copied().collect();
        std::iter::from_fn(move || {
            let next = stack.pop()?;
            stack.extend(self.children(next).iter().rev());
            Some(next)
        })
    }

    pub(super) fn find(&self, name: &str) -> Option<NodeId> {
        self.descendants(ROOT).find(|node| self.name(*node) == name)
    }
}

/// Stands between tokenizer and tree builder, for two things that HTML's own rules do badly.
///
/// In XHTML `<a id="x"/>` is a whole element; HTML would leave it open, so the end tag is put in here. And the tree
/// builder walks all open elements for many tags, so a page of nothing but `<div>` would cost the square of its size:
/// tags nested deeper than browsers allow are dropped, their text is kept.
struct Filter {
    inner: TreeBuilder<NodeId, Sink>,
    is_xhtml: bool,
    /// Elements open that need an end tag.
    depth: Cell<usize>,
}

/// As in browsers.
const DEPTH_MAX: usize = 512;

const VOID: &[&str] = &[
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source",
    "track", "wbr",
];

/// Elements whose end tag is often left out, so that start tags say nothing about depth; and those whose content is not
/// markup, which must never be dropped.
const UNCOUNTED: &[&str] = &[
    "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option", "optgroup",
    "colgroup", "rt", "rp", "html", "head", "body", "script", "style", "title", "textarea",
    "noscript", "iframe", "xmp", "noembed", "noframes",
];

impl Filter {
    /// Whether the tag opens something too deep to be kept.
    fn is_too_deep(&self, tag: &Tag) -> bool {
        if UNCOUNTED.contains(&&*tag.name) || VOID.contains(&&*tag.name) {
            return false;
        }
        let depth = self.depth.get();
        if tag.kind == TagKind::EndTag {
            self.depth.set(depth.saturating_sub(1));
            return false;
        }
        self.depth.set(depth + 1);
        depth >= DEPTH_MAX
    }
}

impl TokenSink for Filter {
    type Handle = NodeId;

    fn process_token(&self, token: Token, line: u64) -> TokenSinkResult<NodeId> {
        let Token::TagToken(tag) = token else {
            return self.inner.process_token(token, line);
        };
        let closes_itself = self.is_xhtml
            && tag.self_closing
            && tag.kind == TagKind::StartTag
            && !VOID.contains(&&*tag.name);
        if closes_itself {
            let end = Tag {
                kind: TagKind::EndTag,
                self_closing: false,
                attrs: Vec::new(),
                ..tag.clone()
            };
            let start = Tag {
                self_closing: false,
                ..tag
            };
            // The answer to the start tag ("now raw text follows") is moot: the element ends here.
            let _ = self.inner.process_token(Token::TagToken(start), line);
            return self.inner.process_token(Token::TagToken(end), line);
        }
        if self.is_too_deep(&tag) {
            return TokenSinkResult::Continue;
        }
        self.inner.process_token(Token::TagToken(tag), line)
    }

    fn end(&self) {
        self.inner.end();
    }

    fn adjusted_current_node_present_but_not_in_html_namespace(&self) -> bool {
        self.inner
            .adjusted_current_node_present_but_not_in_html_namespace()
    }
}

fn is_xhtml(text: &str) -> bool {
    let head: String = text.chars().take(512).collect();
    head.trim_start().starts_with("<?xml") || head.contains("//DTD XHTML")
}

/// Room for nodes at first: about as many as real pages have, so that the vector hardly grows, but no more memory than
/// a long page without markup may cost.
const BYTES_A_NODE: usize = 32;
const NODES_AT_FIRST_MAX: usize = 1 << 16;

struct Sink {
    nodes: RefCell<Vec<Node>>,
}

impl Sink {
    /// For a page of so many bytes.
    fn new(bytes: usize) -> Self {
        let root = Node {
            parent: None,
            children: Vec::new(),
            data: Data::Other,
        };
        let mut nodes = Vec::with_capacity((bytes / BYTES_A_NODE).min(NODES_AT_FIRST_MAX) + 1);
        nodes.push(root);
        Sink {
            nodes: RefCell::new(nodes),
        }
    }

    fn create(&self, data: Data) -> NodeId {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(Node {
            parent: None,
            children: Vec::new(),
            data,
        });
        nodes.len() - 1
    }

    /// Inserts at `at` among the children of `parent`; text joins the text before it.
    fn insert(&self, parent: NodeId, at: usize, child: NodeOrText<NodeId>) {
        match child {
            NodeOrText::AppendNode(node) => {
                self.remove_from_parent(&node);
                let nodes = &mut *self.nodes.borrow_mut();
                nodes[node].parent = Some(parent);
                // Taking the node away above may have shortened the list.
                let at = at.min(nodes[parent].children.len());
                nodes[parent].children.insert(at, node);
            }
            NodeOrText::AppendText(text) => {
                let before = at
                    .checked_sub(1)
                    .map(|at| self.nodes.borrow()[parent].children[at]);
                if let Some(before) = before
                    && let Data::Text(existing) = &mut self.nodes.borrow_mut()[before].data
                {
                    existing.push_tendril(&text);
                    return;
                }
                let node = self.create(Data::Text(text));
                let nodes = &mut *self.nodes.borrow_mut();
                nodes[node].parent = Some(parent);
                nodes[parent].children.insert(at, node);
            }
        }
    }

    fn position(&self, node: NodeId) -> Option<(NodeId, usize)> {
        let nodes = self.nodes.borrow();
        let parent = nodes[node].parent?;
        // Looked up from the end: the tree builder moves what it added last.
        let at = nodes[parent]
            .children
            .iter()
            .rposition(|child| *child == node)?;
        Some((parent, at))
    }
}

/// An element's name as the tree builder asks for it. Names are interned, so a copy is cheap.
#[derive(Debug)]
struct ElementName {
    ns: Namespace,
    local: LocalName,
}

impl html5ever::tree_builder::ElemName for ElementName {
    fn ns(&self) -> &Namespace {
        &self.ns
    }

    fn local_name(&self) -> &LocalName {
        &self.local
    }
}

impl TreeSink for Sink {
    type Handle = NodeId;
    type Output = Dom;
    type ElemName<'a> = ElementName;

    fn finish(self) -> Dom {
        Dom {
            nodes: self.nodes.into_inner(),
        }
    }

    fn parse_error(&self, _: Cow<'static, str>) {}

    fn get_document(&self) -> NodeId {
        ROOT
    }

    fn elem_name<'a>(&'a self, target: &'a NodeId) -> ElementName {
        match &self.nodes.borrow()[*target].data {
            Data::Element { name, .. } => ElementName {
                ns: name.ns.clone(),
                local: name.local.clone(),
            },
            // The tree builder promises to ask for elements only; an empty name is the harmless answer.
            _ => ElementName {
                ns: Namespace::default(),
                local: LocalName::default(),
            },
        }
    }

    fn create_element(&self, name: QualName, attrs: Vec<Attribute>, _: ElementFlags) -> NodeId {
        self.create(Data::Element { name, attrs })
    }

    fn create_comment(&self, _: StrTendril) -> NodeId {
        self.create(Data::Other)
    }

    fn create_pi(&self, _: StrTendril, _: StrTendril) -> NodeId {
        self.create(Data::Other)
    }

    fn append(&self, parent: &NodeId, child: NodeOrText<NodeId>) {
        let at = self.nodes.borrow()[*parent].children.len();
        self.insert(*parent, at, child);
    }

    fn append_based_on_parent_node(
        &self,
        element: &NodeId,
        previous: &NodeId,
        child: NodeOrText<NodeId>,
    ) {
        if self.nodes.borrow()[*element].parent.is_some() {
            self.append_before_sibling(element, child);
        } else {
            self.append(previous, child);
        }
    }

    fn append_doctype_to_document(&self, _: StrTendril, _: StrTendril, _: StrTendril) {}

    fn get_template_contents(&self, target: &NodeId) -> NodeId {
        *target
    }

    fn same_node(&self, x: &NodeId, y: &NodeId) -> bool {
        x == y
    }

    fn set_quirks_mode(&self, _: QuirksMode) {}

    fn append_before_sibling(&self, sibling: &NodeId, child: NodeOrText<NodeId>) {
        if let NodeOrText::AppendNode(node) = &child {
            self.remove_from_parent(node);
        }
        if let Some((parent, at)) = self.position(*sibling) {
            self.insert(parent, at, child);
        }
    }

    fn add_attrs_if_missing(&self, target: &NodeId, new: Vec<Attribute>) {
        if let Data::Element { attrs, .. } = &mut self.nodes.borrow_mut()[*target].data {
            for attr in new {
                if attrs.iter().all(|old| old.name != attr.name) {
                    attrs.push(attr);
                }
            }
        }
    }

    fn remove_from_parent(&self, target: &NodeId) {
        if let Some((parent, at)) = self.position(*target) {
            let nodes = &mut *self.nodes.borrow_mut();
            nodes[parent].children.remove(at);
            nodes[*target].parent = None;
        }
    }

    fn reparent_children(&self, node: &NodeId, new_parent: &NodeId) {
        let nodes = &mut *self.nodes.borrow_mut();
        let children = std::mem::take(&mut nodes[*node].children);
        for child in &children {
            nodes[*child].parent = Some(*new_parent);
        }
        nodes[*new_parent].children.extend(children);
    }
}
