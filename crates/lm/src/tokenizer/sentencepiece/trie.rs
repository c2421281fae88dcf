//! Finds the keys that a text begins with.

/// Keys by their bytes. A node's children are adjacent and sorted by their bytes.
#[derive(Debug, Clone)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    /// Byte and child.
    edges: Vec<(u8, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    first_edge: u32,
    edges: u32,
    value: Option<u32>,
}

/// With more children than this, binary search is faster than a linear scan.
const MAX_SCANNED: usize = 8;

impl Trie {
    /// Builds a trie of distinct, non-empty keys.
    pub(super) fn new(mut keys: Vec<(&[u8], u32)>) -> Self {
        keys.sort_unstable();
        let mut trie = Self { nodes: Vec::new(), edges: Vec::new() };
        // Keys that share their first `depth` bytes become one node; nodes are created in the order
        // of this list.
        let mut spans = vec![(0..keys.len(), 0)];
        let mut made = 0;
        while let Some((mut span, depth)) = spans.get(made).cloned() {
            made += 1;
            let mut node = Node { first_edge: trie.edges.len() as u32, edges: 0, value: None };
            if let Some((key, value)) = keys.get(span.start)
                && key.len() == depth
            {
                node.value = Some(*value);
                span.start += 1;
            }
            while span.start < span.end {
                let byte = keys[span.start].0[depth];
                let same = keys[span.clone()].partition_point(|(key, _)| key[depth] <= byte);
                trie.edges.push((byte, spans.len() as u32));
                spans.push((span.start..span.start + same, depth + 1));
                node.edges += 1;
                span.start += same;
            }
            trie.nodes.push(node);
        }
        trie
    }

    /// The keys that are prefixes of `text`, shortest first: their lengths and values.
    pub(super) fn prefixes<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let (mut node, mut length) = (0, 0);
        std::iter::from_fn(move || {
            loop {
                node = self.child(node, *text.get(length)?)?;
                length += 1;
                if let Some(value) = self.nodes[node].value {
                    return Some((length, value));
                }
            }
        })
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let node = &self.nodes[node];
        let edges = &self.edges[node.first_edge as usize..(node.first_edge + node.edges) as usize];
        let at = if edges.len() <= MAX_SCANNED {
            edges.iter().position(|edge| edge.0 == byte)?
        } else {
            edges.binary_search_by_key(&byte, |edge| edge.0).ok()?
        };
        Some(edges[at].1 as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::Trie;

    #[test]
    fn prefixes_are_found_shortest_first() {
        let words = ["a", "ab", "abcd", "b", "é", "éa"];
        let many: Vec<String> = (0..300).map(|n| format!("z{n:03}")).collect();
        let keys = words.iter().copied().chain(many.iter().map(String::as_str));
        let trie = Trie::new(keys.zip(0..).map(|(word, value)| (word.as_bytes(), value)).collect());
        let found = |text: &str| trie.prefixes(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(found("abcx"), [(1, 0), (2, 1)]);
        assert_eq!(found("abcde"), [(1, 0), (2, 1), (4, 2)]);
        assert_eq!(found("éab"), [(2, 4), (3, 5)]);
        assert_eq!(found("z123"), [(4, 6 + 123)]);
        assert_eq!(found("c"), []);
        assert_eq!(found(""), []);
        assert_eq!(Trie::new(Vec::new()).prefixes(b"a").count(), 0);
    }
}
