//! openraft's own suite, over the real log and the real state machine.

use std::path::Path;
use std::sync::Arc;

use openraft::StorageError;
use openraft::errors::ErrorSource;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::ApplyBounds;
use super::log_store::LogStore;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use crate::env::{Disk, RealDisk, watch};
use crate::fault::Faults;
use crate::log::{Log, LogSettings, OpenMode};
use crate::machine::{self, Machine, MachineSettings};

struct Stores;

fn open(dir: &Path) -> Result<(LogStore, StateMachine), Box<dyn std::error::Error>> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (log_dir, state_dir) = (dir.join("log"), dir.join("state"));
    disk.create_dir_all(&log_dir)?;
    disk.create_dir_all(&state_dir)?;
    let settings = LogSettings {
        mode: OpenMode::Create,
        segment_bytes: 1 << 20,
        ..LogSettings::default()
    };
    let log = Log::open(Arc::clone(&disk), &log_dir, settings)?;
    let settings = MachineSettings {
        cache_bytes: 8 << 20,
        ..MachineSettings::default()
    };
    let (machine, reader) =
        Machine::open(Arc::clone(&disk), &state_dir, machine::OpenMode::Create, settings)?;
    let faults = Faults::default();
    let machine = StateMachine::start(
        machine,
        reader,
        ApplyBounds::default(),
        None,
        disk,
        state_dir,
        faults.clone(),
    );
    // The suite applies and appends in an order that openraft itself does not: the log is told of nothing that is applied.
    let nothing = watch::channel(Arc::clone(&machine.applied().borrow())).1;
    let log = LogStore::new(log, nothing, None, faults);
    Ok((log, machine))
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let failed = |e: &dyn std::fmt::Display| {
            StorageError::write(openraft::impls::BoxedErrorSource::from_string(e.to_string()))
        };
        let dir = tempfile::tempdir().map_err(|e| failed(&e))?;
        let (log, machine) = open(dir.path()).map_err(|e| failed(&e))?;
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_stores_pass_openrafts_storage_suite() {
    Suite::test_all(Stores).await.expect("openraft's storage suite");
}
