//! From an operation's end to whoever waits for it.
//!
//! `cargo bench --bench dispatch`. The end is brought by `Operation::finish` itself, which a lane's thread calls when the
//! last piece is through; everything public that leads to it goes by a lane, and would be measured along.
//!
//! - `dispatch_call`: what the thread that ends an operation pays before it goes on: nobody waits (`nobody`), a sink that
//!   does nothing (`sink`), one that keeps the ticket and writes an eventfd (`eventfd_sink`), as an event loop's does.
//!   Beside it the bare write (`write`).
//! - `dispatch_wake`: from before the end until another thread that slept is awake: by `Operation::wait` (`wait`), by the
//!   eventfd of such a sink (`eventfd_sink`); and by an eventfd that was written without any operation (`eventfd`), the
//!   layer below. The kernel's part is most of all three.
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on has nothing better to do than to stop

mod waiters;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, SamplingMode};
use dynamo_nixl::operation::{CompletionSink, Operation, Outcome, Phase, next_ticket};
use dynamo_nixl::types::{AgentName, Direction, OperationKey};

use waiters::{Counter, Event, Sleeper, bell};

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(30)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args();
    call(&mut criterion.benchmark_group("dispatch_call"));
    wake(&mut criterion.benchmark_group("dispatch_wake"));
    criterion.final_summary();
}

fn call(group: &mut BenchmarkGroup<'_, WallTime>) {
    let event = Event::new();
    group.bench_function("write", |bencher| bencher.iter(|| event.write()));
    group.bench_function("nobody", |bencher| {
        bencher.iter_batched_ref(operation, |operation| finish(operation), BatchSize::SmallInput);
    });
    let counter: Arc<dyn CompletionSink> = Arc::new(Counter::default());
    group.bench_function("sink", |bencher| {
        bencher.iter_batched_ref(
            || watched(&counter),
            |operation| finish(operation),
            BatchSize::SmallInput,
        );
    });
    let (bell, sink) = bell();
    group.bench_function("eventfd_sink", |bencher| {
        bencher.iter_custom(|iterations| {
            // One by one, since only the first of several that a loop finds writes.
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                let operation = watched(&sink);
                let start = Instant::now();
                finish(&operation);
                total += start.elapsed();
                assert_eq!(bell.drain().len(), 1);
            }
            total
        });
    });
}

fn wake(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function("eventfd", |bencher| {
        let event = &Arc::new(Event::new());
        let read = Arc::clone(event);
        let sleeper = Sleeper::spawn(move |()| read.read());
        bencher.iter_custom(|iterations| sleeper.wake(iterations, || ((), || event.write())));
    });
    group.bench_function("eventfd_sink", |bencher| {
        let (bell, sink) = bell();
        let sleeper = Sleeper::spawn(move |()| assert_eq!(bell.drain().len(), 1));
        bencher.iter_custom(|iterations| {
            sleeper.wake(iterations, || {
                let operation = watched(&sink);
                ((), move || finish(&operation))
            })
        });
    });
    group.bench_function("wait", |bencher| {
        let sleeper = Sleeper::spawn(|operation: Arc<Operation>| {
            assert!(operation.wait(Phase::Finished, None));
        });
        bencher.iter_custom(|iterations| {
            sleeper.wake(iterations, || {
                let operation = operation();
                (Arc::clone(&operation), move || finish(&operation))
            })
        });
    });
}

fn operation() -> Arc<Operation> {
    Operation::new(
        Direction::Read,
        OperationKey::new("key"),
        Some(AgentName::new("peer")),
        0,
    )
}

fn watched(sink: &Arc<dyn CompletionSink>) -> Arc<Operation> {
    let operation = operation();
    assert!(operation.watch(Phase::Finished, sink, next_ticket()));
    operation
}

fn finish(operation: &Arc<Operation>) {
    assert!(operation.finish(Outcome::Complete));
}
