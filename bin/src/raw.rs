//! The raw form of a result: lines of fields with tabs between them, for pipes.
//!
//! Always: the lines of one command have the same fields in the same order; a field holds no tab, no line feed and no carriage
//! return, and its bytes can be told from it: `\t`, `\n`, `\r` and `\\` stand for those four bytes, all others for themselves.

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Writes fields as one line.
pub fn line<F: AsRef<[u8]>>(to: &mut Vec<u8>, fields: impl IntoIterator<Item = F>) {
    for (place, field) in fields.into_iter().enumerate() {
        if place > 0 {
            to.push(b'\t');
        }
        for byte in field.as_ref() {
            match byte {
                b'\t' => to.extend(b"\\t"),
                b'\n' => to.extend(b"\\n"),
                b'\r' => to.extend(b"\\r"),
                b'\\' => to.extend(b"\\\\"),
                byte => to.push(*byte),
            }
        }
    }
    to.push(b'\n');
}

/// The lines of a value that has a JSON form: of the list with this name a line for each element, or one line for the whole.
/// The fields are those of the JSON form in their order. `None`: it has no such list, or no JSON form.
pub fn lines(value: &(impl Serialize + ?Sized), list: Option<&str>) -> Option<Vec<u8>> {
    let tree: Tree = serde_json::from_str(&serde_json::to_string(value).ok()?).ok()?;
    let elements = match (tree, list) {
        // There is nothing to show.
        (Tree::Null, Some(_)) => Vec::new(),
        (Tree::Object(fields), Some(name)) => match fields.into_iter().find(|(field, _)| field == name) {
            Some((_, Tree::List(elements))) => elements,
            _ => return None,
        },
        (_, Some(_)) => return None,
        (whole, None) => vec![whole],
    };
    let mut lines = Vec::new();
    for element in elements {
        match element {
            Tree::Object(fields) => line(&mut lines, fields.iter().map(|(_, field)| field.word())),
            other => line(&mut lines, [other.word()]),
        }
    }
    Some(lines)
}

/// A JSON value whose objects keep the order of their fields.
#[derive(Debug)]
enum Tree {
    Null,
    Scalar(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    /// It in one field: nothing for null; of a list or an object the parts with commas between them.
    fn word(&self) -> String {
        match self {
            Tree::Null => String::new(),
            Tree::Scalar(text) => text.clone(),
            Tree::List(elements) => elements.iter().map(Tree::word).collect::<Vec<_>>().join(","),
            Tree::Object(fields) => fields
                .iter()
                .map(|(name, field)| format!("{name}={}", field.word()))
                .collect::<Vec<_>>()
                .join(","),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = access.next_element()? {
            elements.push(element);
        }
        Ok(Tree::List(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = access.next_entry()? {
            fields.push(field);
        }
        Ok(Tree::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn text(value: serde_json::Value, list: Option<&str>) -> Option<String> {
        lines(&value, list).map(|lines| String::from_utf8(lines).expect("text came in"))
    }

    #[derive(Serialize)]
    struct Node {
        zone: &'static str,
        id: u64,
        leads: Option<bool>,
        replicas: Vec<u64>,
    }

    #[derive(Serialize)]
    struct Nodes {
        nodes: Vec<Node>,
        count: u64,
    }

    #[test]
    fn a_list_is_a_line_for_each_element_in_the_order_of_its_fields() {
        let node = |id, leads| Node {
            zone: "z",
            id,
            leads,
            replicas: vec![3, 1],
        };
        let nodes = Nodes {
            nodes: vec![node(2, Some(true)), node(1, None)],
            count: 2,
        };
        let list = String::from_utf8(lines(&nodes, Some("nodes")).expect("there are nodes")).expect("text");
        assert_eq!(list, "z\t2\ttrue\t3,1\nz\t1\t\t3,1\n");
        assert_eq!(lines(&nodes, Some("members")), None, "no such list");
        let none = Nodes {
            nodes: Vec::new(),
            count: 0,
        };
        assert_eq!(lines(&none, Some("nodes")), Some(Vec::new()));
    }

    #[test]
    fn anything_else_is_one_line() {
        let cases = [
            (
                "an object",
                json!({"a": 1, "b": {"x": "1", "y": [true, null]}}),
                "1\tx=1,y=true,\n",
            ),
            ("a number", json!(-7), "-7\n"),
            ("a fraction", json!(0.5), "0.5\n"),
            ("nothing", json!(null), "\n"),
        ];
        for (name, value, expected) in cases {
            assert_eq!(text(value, None).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(text(json!(null), Some("nodes")).as_deref(), Some(""));
    }

    /// What the manual says of a field, the other way round.
    fn read(field: &[u8]) -> Vec<u8> {
        let mut bytes = field.iter();
        let mut read = Vec::new();
        while let Some(byte) = bytes.next() {
            read.push(match byte {
                b'\\' => match bytes.next() {
                    Some(b't') => b'\t',
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b'\\') => b'\\',
                    other => panic!("\\{other:?} is no escape"),
                },
                byte => *byte,
            });
        }
        read
    }

    proptest! {
        #[test]
        fn fields_of_any_bytes_read_back(
            fields in prop::collection::vec(
                prop::collection::vec(prop_oneof![Just(b'\\'), Just(b'\t'), Just(b'\n'), Just(b'\r'), any::<u8>()], 0..12),
                1..5,
            )
        ) {
            let mut written = Vec::new();
            line(&mut written, &fields);
            let (end, rest) = written.split_last().expect("a line has an end");
            prop_assert_eq!(*end, b'\n');
            prop_assert!(!rest.contains(&b'\n') && !rest.contains(&b'\r'));
            let back: Vec<Vec<u8>> = rest.split(|byte| *byte == b'\t').map(read).collect();
            prop_assert_eq!(back, fields);
        }
    }
}
