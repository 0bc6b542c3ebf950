//! Three processes with certificates of one authority.

mod program;

use program::{Home, Ran, Server, free_ports, until};
use serde_json::{Value, json};

struct Three {
    home: Home,
    ports: Vec<u16>,
}

impl Three {
    fn new() -> Self {
        let home = Home::new();
        home.line("certs init --cluster blue --dir c").ok();
        for id in 1..=4 {
            home.line(&format!("certs issue --dir c --node {id} --host localhost"))
                .ok();
        }
        home.line("certs issue --dir c --client me").ok();
        Self {
            home,
            ports: free_ports(4),
        }
    }

    fn serve(&self, id: usize) -> Server {
        self.start(id, &["--peers", &self.peers()])
    }

    fn start(&self, id: usize, args: &[&str]) -> Server {
        let all = self.args(id, args);
        self.home
            .serve(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs a node until it ends by itself.
    fn serve_to_its_end(&self, id: usize) -> Ran {
        let mut all = vec!["serve".to_owned()];
        all.extend(self.args(id, &["--peers", &self.peers()]));
        self.home.run(all)
    }

    fn peers(&self) -> String {
        let peer = |id: usize| format!("{id}=127.0.0.1:{}", self.ports[id - 1]);
        (1..=3).map(peer).collect::<Vec<_>>().join(",")
    }

    fn args(&self, id: usize, more: &[&str]) -> Vec<String> {
        let (node, data) = (id.to_string(), format!("data{id}"));
        let listen = format!("127.0.0.1:{}", self.ports[id - 1]);
        let all = [
            "--cluster",
            "blue",
            "--node-id",
            &node,
            "--data-dir",
            &data,
            "--listen",
            &listen,
            "--certs",
            "c",
        ];
        all.iter().chain(more).map(ToString::to_string).collect()
    }

    fn status(&self) -> Option<Value> {
        let ran = self.home.line("status --json");
        (ran.code == 0).then(|| ran.json())
    }

    /// The leader, once all of so many nodes answer and follow it.
    fn leader(&self, count: usize) -> u64 {
        until("all follow a leader", || {
            let status = self.status()?;
            let nodes = status["nodes"].as_array()?;
            let up = nodes.iter().filter(|node| node["reachable"] == true).count();
            (up == count && status["quorum"] == true)
                .then(|| status["leader"].as_u64())
                .flatten()
        })
    }
}

#[test]
fn a_cluster_survives_its_leader_and_changes_its_members() {
    let three = Three::new();
    let home = &three.home;
    let mut nodes: Vec<Option<Server>> = (1..=3).map(|id| Some(three.serve(id))).collect();
    let leader = three.leader(3);
    home.line("kv put a 1").ok();

    // A planned stop hands the leadership on.
    let at = usize::try_from(leader).unwrap() - 1;
    assert!(nodes[at].take().unwrap().stop().success());
    let next = three.leader(2);
    assert_ne!(next, leader);
    home.line("kv put a 2").ok();
    let status = three.status().unwrap();
    let gone = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["id"] == json!(leader))
        .unwrap();
    assert_eq!(gone["reachable"], false);
    assert!(home.line("status").ok().text().contains("unreachable"));
    nodes[at] = Some(three.serve(at + 1));
    three.leader(3);

    // Leadership moves on request.
    until("the leadership is where it was asked for", || {
        (home.line(&format!("member move-leader {leader}")).code == 0).then_some(())
    });
    three.leader(3);

    // A fourth node joins, is promoted, and takes the place of one that is removed.
    let fourth = three.start(4, &["--join"]);
    until("the log says that the fourth waits", || {
        home.logs()
            .contains("the node waits to be added to its cluster")
            .then_some(())
    });
    home.line(&format!("member add 4 {}", fourth.address)).ok();
    until("the fourth has a vote", || {
        (home.line("member promote 4").code == 0).then_some(())
    });
    let last = if leader == 3 { 2 } else { 3 };
    home.line(&format!("member remove {last}")).ok();
    let members = home.line("member list --json").json();
    let ids: Vec<_> = members["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_u64().unwrap())
        .collect();
    let mut expected = vec![1, 2, 3, 4];
    expected.retain(|id| *id != last);
    assert_eq!(ids, expected);
    assert_eq!(home.line("kv get a --raw").ok().text(), "2");
}

#[test]
fn without_a_quorum_writes_are_not_called_failed() {
    let three = Three::new();
    let mut nodes: Vec<Server> = (1..=3).map(|id| three.serve(id)).collect();
    let leader = three.leader(3);
    three.home.line("kv put a 1").ok();
    let keep = nodes.remove(usize::try_from(leader).unwrap() - 1);
    nodes.into_iter().for_each(Server::kill);
    // The leader may take the write into its log before it notices that it is alone: then nobody knows.
    let ran = three.home.line("kv put a 2 --deadline 2s");
    assert!([4, 5].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    let read = three.home.line("kv get a --deadline 2s");
    assert_eq!(read.code, 4, "{}", read.stderr);
    assert_eq!(
        three
            .home
            .line("kv get a --stale --raw --deadline 2s")
            .ok()
            .text(),
        "1"
    );
    keep.kill();
}

/// The story: node 3 was away for a write; node 2 lost its directory and came back empty; node 1 stopped, and node 3 came back.
/// Nodes 2 and 3 elected a leader, and the write was gone.
#[test]
fn a_node_that_lost_its_directory_ends_with_code_2_and_says_what_to_do() {
    let three = Three::new();
    let home = &three.home;
    let [one, two, last] = [1, 2, 3].map(|id| three.serve(id));
    three.leader(3);
    home.line("kv put a 1").ok();
    let uuid = three.status().unwrap()["cluster_uuid"].clone();
    assert!(uuid.is_string(), "{uuid}");
    assert!(last.stop().success());
    three.leader(2);
    home.line("kv put b acknowledged").ok();
    two.stop();
    std::fs::rename(home.path("data2"), home.path("lost")).unwrap();
    let says = ["another directory", "remove node 2", "--join"];
    three.serve_to_its_end(2).fails(2, &says);
    one.stop();
    let last = three.serve(3);
    three.serve_to_its_end(2).fails(2, &says);
    // Alone it has no quorum; with node 1 nothing is lost.
    assert_eq!(home.line("kv put c 1 --deadline 2s").code, 4);
    let one = three.serve(1);
    three.leader(2);
    assert_eq!(home.line("kv get b --raw").ok().text(), "acknowledged");
    assert_eq!(three.status().unwrap()["cluster_uuid"], uuid);
    last.kill();
    one.kill();
}
