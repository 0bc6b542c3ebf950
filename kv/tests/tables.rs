//! Typed tables, as a program uses them.

use bytes::Bytes;
use quorate_kv::client::{Error, Swap};
use quorate_kv::model::{Guard, OpResult, Value};
use quorate_kv::table::{Entry, Postcard, Raw, Table};
use quorate_kv::{Client, Node};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    name: String,
    #[serde(default)]
    logins: u32,
}

fn user(name: &str) -> User {
    User {
        name: name.to_owned(),
        logins: 0,
    }
}

const USERS: Table<i64, User> = Table::new("users/");
const BY_NAME: Table<(String, i64), ()> = Table::new("by-name/");
const SMALL: Table<String, User, Postcard> = Table::with_codec("small/");
const BLOBS: Table<[u8; 2], Value, Raw> = Table::with_codec("blobs/");

async fn start() -> (tempfile::TempDir, Node, Client) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder().data_dir(dir.path()).start().await.unwrap();
    let client = node.client();
    (dir, node, client)
}

fn keys<K, V>(entries: Vec<Entry<K, V>>) -> Vec<K> {
    entries.into_iter().map(|entry| entry.key).collect()
}

#[tokio::test]
async fn rows_are_written_read_and_deleted_by_their_keys() {
    let (_dir, node, client) = start().await;
    let users = client.table(USERS);
    assert_eq!(users.get(7).await.unwrap(), None);
    let written = users.put(7, &user("Ann")).await.unwrap();
    assert_eq!(users.get(7).await.unwrap(), Some(user("Ann")));
    assert_eq!(
        users.get(7).stale().min_revision(written).await.unwrap(),
        Some(user("Ann"))
    );
    assert!(users.exists(7).await.unwrap() && !users.exists(8).await.unwrap());
    assert!(matches!(
        users.put_if_absent(7, &user("Bob")).await.unwrap(),
        Swap::Differs(Some(_))
    ));
    assert!(users.put_if_absent(8, &user("Bob")).await.unwrap().is_written());
    assert!(users.delete(8).await.unwrap() && !users.delete(8).await.unwrap());

    // Readable where the store is looked at.
    let raw = client.get(USERS.key(7)).await.unwrap().unwrap();
    assert_eq!(raw.text(), Some(r#"{"name":"Ann","logins":0}"#));
    // A row that was written before the type had a field.
    client.put(USERS.key(9), r#"{"name":"Cid"}"#).await.unwrap();
    assert_eq!(users.get(9).await.unwrap(), Some(user("Cid")));

    let small = client.table(SMALL);
    small.put("ann", &user("Ann")).await.unwrap();
    assert_eq!(small.get(String::from("ann")).await.unwrap(), Some(user("Ann")));
    assert_eq!(client.get("small/ann").await.unwrap().unwrap().value.len(), 5);
    client.put(SMALL.key("ann"), b"\x03Ann\0\0").await.unwrap();
    let behind = small.get("ann").await.unwrap_err().to_string();
    assert!(behind.contains("1 bytes follow the value"), "{behind}");
    let blobs = client.table(BLOBS);
    blobs.put([1, 2], &Bytes::from_static(b"\0\xff")).await.unwrap();
    assert_eq!(blobs.get([1, 2]).await.unwrap().as_deref(), Some(&b"\0\xff"[..]));
    node.shutdown().await;
}

#[tokio::test]
async fn a_range_of_rows_is_a_range_of_their_keys_and_all_of_one_revision() {
    let (_dir, node, client) = start().await;
    let users = client.table(USERS);
    for number in [-300, -2, -1, 0, 1, 255, 256, 70_000] {
        users.put(number, &user(&number.to_string())).await.unwrap();
    }
    client.put("users", "of no table").await.unwrap();
    client.put("users0", "of no table").await.unwrap();
    assert_eq!(
        keys(users.range(..).await.unwrap()),
        [-300, -2, -1, 0, 1, 255, 256, 70_000]
    );
    assert_eq!(keys(users.range(-2..256).await.unwrap()), [-2, -1, 0, 1, 255]);
    assert_eq!(
        keys(users.range(-2..=256).await.unwrap()),
        [-2, -1, 0, 1, 255, 256]
    );
    assert_eq!(
        keys(users.range(256..).descending().await.unwrap()),
        [70_000, 256]
    );
    assert_eq!(keys(users.range(..0).limit(2).await.unwrap()), [-300, -2]);
    assert_eq!(users.count(..).await.unwrap(), 8);
    assert_eq!(users.count(..=-1).await.unwrap(), 3);
    let entries = users.range(0..=0).stale().await.unwrap();
    assert_eq!((entries[0].key, entries[0].value.name.as_str()), (0, "0"));
    assert_eq!(users.delete_range(..0).await.unwrap(), 3);

    let by_name = client.table(BY_NAME);
    for (name, number) in [("ann", 2), ("ann", 1), ("anna", 1), ("an", 9), ("a\0n", 1)] {
        by_name.put((name, number), &()).await.unwrap();
    }
    let of = |name: &'static str| by_name.prefix((name,));
    assert_eq!(
        keys(of("ann").await.unwrap()),
        [("ann".to_owned(), 1), ("ann".to_owned(), 2)]
    );
    assert_eq!(keys(of("a").await.unwrap()), []);
    let all = keys(by_name.range(("ann", 2)..("annz", 0)).await.unwrap());
    assert_eq!(all, [("ann".to_owned(), 2), ("anna".to_owned(), 1)]);

    // More rows than a page has.
    let many: Vec<_> = (0..1_500)
        .map(|number| USERS.put(number, &user("x")).unwrap())
        .collect();
    client.txn().ops(many).await.unwrap();
    assert_eq!(users.range(0..1_500).await.unwrap().len(), 1_500);
    assert_eq!(users.range(0..).limit(1_200).await.unwrap().len(), 1_200);
    node.shutdown().await;
}

#[tokio::test]
async fn several_tables_change_in_one_transaction_or_none_does() {
    let (_dir, node, client) = start().await;
    let rename = async |number: i64, name: &str| {
        client
            .transact(async |t| {
                let users = t.table(USERS);
                let by_name = t.table(BY_NAME);
                let mut row = users.get(number).await?.unwrap_or_else(|| user(""));
                by_name.delete((&row.name, number))?;
                row.name = name.to_owned();
                users.put(number, &row)?;
                by_name.put((name, number), &())?;
                assert_eq!(users.get(number).await?, Some(row), "it reads what it wrote");
                Ok(by_name.prefix((name,)).await?.len())
            })
            .await
    };
    assert_eq!(rename(1, "ann").await.unwrap(), 1);
    assert_eq!(rename(2, "ann").await.unwrap(), 2);
    assert_eq!(rename(1, "bob").await.unwrap(), 1);
    let of_ann = keys(client.table(BY_NAME).prefix(("ann",)).await.unwrap());
    assert_eq!(of_ann, [("ann".to_owned(), 2)]);

    let answer = client
        .txn()
        .when(USERS.missing(3))
        .when(BY_NAME.missing(("cid", 3)))
        .when(Guard::empty(USERS.key_range(3..)))
        .op(USERS.put(3, &user("cid")).unwrap())
        .op(BY_NAME.put(("cid", 3), &()).unwrap())
        .op(USERS.delete(1))
        .await
        .unwrap();
    assert!(answer.succeeded);
    assert_eq!(
        answer.results[2],
        OpResult::Deleted {
            count: 1,
            more: false
        }
    );
    node.shutdown().await;
}

#[tokio::test]
async fn a_row_that_is_none_of_the_table_is_told_and_one_that_cannot_be_written_is_not_sent() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Odd {
        by_pair: std::collections::BTreeMap<(u8, u8), u8>,
    }
    const ODD: Table<u64, Odd> = Table::new("odd/");
    let (_dir, node, client) = start().await;
    client.put(USERS.key(1), "no json").await.unwrap();
    client.put("users/short", "{}").await.unwrap();
    let users = client.table(USERS);
    let told = users.get(1).await.unwrap_err();
    assert!(matches!(&told, Error::InvalidValue { key: None, .. }), "{told}");
    let told = users.range(0..).await.unwrap_err().to_string();
    assert!(
        told.starts_with("users/") && told.contains("the value cannot be read"),
        "{told}"
    );
    client.delete(USERS.key(1)).await.unwrap();
    let told = users.range(..).await.unwrap_err().to_string();
    assert!(
        told.contains("users/short") && told.contains("the key is none of the table"),
        "{told}"
    );

    let before = client.status().await.unwrap().applied;
    let odd = Odd {
        by_pair: [((1, 2), 3)].into(),
    };
    let refused = client.table(ODD).put(1, &odd).await.unwrap_err();
    assert!(
        matches!(&refused, Error::InvalidValue { key: Some(key), .. } if *key == ODD.key(1)),
        "{refused}"
    );
    assert!(!refused.may_have_committed() && !refused.is_retryable());
    assert!(
        client
            .transact(async |t| t.table(ODD).put(1, &odd))
            .await
            .is_err()
    );
    assert!(client.table(ODD).put_if_absent(1, &odd).await.is_err());
    // However often it is asked.
    let mut put = client.table(ODD).put(1, &odd);
    assert!((&mut put).await.is_err() && (&mut put).await.is_err());
    // Though the closure goes on.
    let kept = client
        .transact(async |t| {
            let _lost = t.table(ODD).put(1, &odd);
            t.put("k", "v")
        })
        .await;
    assert!(matches!(kept, Err(Error::InvalidValue { .. })), "{kept:?}");
    assert_eq!(client.status().await.unwrap().applied, before, "nothing was sent");
    client.put(USERS.key(1), "no json").await.unwrap();
    let before = client.status().await.unwrap().applied;
    let overwritten = client
        .transact(async |t| {
            let users = t.table(USERS);
            let row = users
                .get(1)
                .await
                .unwrap_or_default()
                .unwrap_or_else(|| user("new"));
            users.put(1, &row)
        })
        .await;
    assert!(
        matches!(overwritten, Err(Error::InvalidValue { .. })),
        "{overwritten:?}"
    );
    let overwritten = client
        .transact(async |t| {
            let _lost = t.table(USERS).range(..).await;
            t.put("k", "v")
        })
        .await;
    assert!(
        matches!(overwritten, Err(Error::InvalidValue { .. })),
        "{overwritten:?}"
    );
    assert_eq!(client.status().await.unwrap().applied, before, "nothing was sent");
    node.shutdown().await;
}
