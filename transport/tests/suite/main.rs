//! One suite for every implementation of the transport: what the contract promises, over QUIC and in memory.
//!
//! Each test is written once, against a [`World`], and runs over all: QUIC whose threads sleep, QUIC whose one thread
//! looks for datagrams, and memory.

mod contract;
mod memory_world;
mod meters;
mod names;
mod quic_only;
mod quic_world;
mod relay;
mod strangers;
mod world;

/// Every test of the contract, over one world.
macro_rules! suite {
    ($module:ident, $workers:literal, $world:expr, [$($test:ident),* $(,)?]) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = $workers)]
                async fn $test() {
                    let deadline = std::time::Duration::from_secs(60);
                    let test = crate::contract::$test($world);
                    tokio::time::timeout(deadline, test).await.expect("the test takes too long");
                }
            )*
        }
    };
}

/// The same tests over every world.
macro_rules! over_all {
    ($($test:ident),* $(,)?) => {
        suite!(quic, 2, crate::quic_world::QuicWorld::new(), [$($test),*]);
        suite!(quic_busy_polling, 1, crate::quic_world::QuicWorld::busy_polling(), [$($test),*]);
        suite!(memory, 2, crate::memory_world::MemoryWorld::new(), [$($test),*]);
    };
}

over_all![
    messages_arrive_whole_and_in_order,
    both_directions_carry_messages_at_once,
    a_large_message_arrives_whole,
    an_empty_message_is_a_message,
    a_message_over_the_limit_is_refused_and_the_stream_lives_on,
    the_receiver_ends_after_the_last_message_of_a_finished_stream,
    one_half_can_be_finished_while_the_other_goes_on,
    a_dropped_sender_resets_the_stream,
    a_dropped_receiver_stops_the_sender,
    a_receiver_that_does_not_read_makes_the_sender_wait,
    a_cancelled_receive_loses_nothing,
    a_cancelled_accept_loses_nothing,
    the_acceptor_learns_who_opened_and_for_what,
    a_client_that_knows_only_an_address_is_served,
    a_node_with_another_id_is_refused,
    a_node_of_another_cluster_is_refused,
    nobody_at_the_address_is_told_fast_and_found_later,
    during_the_backoff_the_answer_comes_at_once,
    a_peer_that_restarts_is_reached_again,
    a_peer_that_shuts_down_ends_its_streams,
    a_cut_link_breaks_its_streams_and_comes_back,
    many_streams_at_once_do_not_mix,
    the_most_urgent_stream_is_accepted_first,
    after_shutdown_nothing_opens_and_accept_ends,
    the_round_trip_to_a_connected_node_is_known,
    the_end_of_a_process_is_noticed,
    nothing_but_the_end_of_a_process_is_taken_for_it,
    an_end_behind_a_broken_link_is_noticed_once_it_is_whole,
    an_end_is_noticed_though_most_probes_are_lost,
    a_process_with_a_successor_has_not_ended,
    after_shutdown_no_end_is_noticed,
];
