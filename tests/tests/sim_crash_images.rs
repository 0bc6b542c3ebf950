//! Every image that a loss of power can leave of a small log and of a small state file.
//!
//! For each call of the disk that a workload makes, the power fails before it; of what no sync covers then,
//! nothing survives, or all, each operation alone, each prefix, each rest, all but one. Of each image must be
//! made what some prefix of the workload made, and no shorter one than was acknowledged.

mod crash_images {
    mod log;
    mod machine;
}
