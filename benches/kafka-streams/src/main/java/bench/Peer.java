package bench;

import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * The peer of the benchmark `kafka`: a stateless map or a keyed count with Kafka Streams, exactly once.
 *
 * <p>Arguments are NAME=VALUE; `set.PROPERTY=VALUE` sets any property of Kafka Streams. Says `running` once partitions are
 * assigned, and ends when its input ends.
 */
public final class Peer {
    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        Properties config = new Properties();
        for (String argument : arguments) {
            String[] pair = argument.split("=", 2);
            if (pair[0].startsWith("set.")) {
                config.put(pair[0].substring(4), pair[1]);
            } else {
                options.put(pair[0], pair[1]);
            }
        }
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, options.get("group"));
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, options.get("brokers"));
        config.put(StreamsConfig.STATE_DIR_CONFIG, Path.of(options.get("state")).toString());
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, "1");
        config.put("auto.offset.reset", "earliest");

        StreamsBuilder builder = new StreamsBuilder();
        KStream<String, Event> events =
                builder.stream(options.get("input"), Consumed.with(Serdes.String(), Event.serde()));
        switch (options.get("work")) {
            case "map" -> events.mapValues(event -> {
                event.total = event.amount * event.quantity;
                return event;
            }).to(options.get("output"), Produced.with(Serdes.String(), Event.serde()));
            case "count" -> events.groupByKey()
                    .count(store(options.get("store")))
                    .toStream()
                    .mapValues(Event.Counted::new)
                    .to(options.get("output"), Produced.with(Serdes.String(), Event.countedSerde()));
            default -> throw new IllegalArgumentException("work=map or work=count");
        }

        CountDownLatch running = new CountDownLatch(1);
        try (KafkaStreams streams = new KafkaStreams(builder.build(), config)) {
            streams.setStateListener((now, before) -> {
                if (now == KafkaStreams.State.RUNNING) {
                    running.countDown();
                } else if (now == KafkaStreams.State.ERROR) {
                    System.exit(1);
                }
            });
            streams.start();
            running.await();
            System.out.println("running");
            while (System.in.read() >= 0) {}
            streams.close(Duration.ofSeconds(20));
        }
    }

    private static Materialized<String, Long, KeyValueStore<Bytes, byte[]>> store(String kind) {
        Materialized<String, Long, KeyValueStore<Bytes, byte[]>> store = "memory".equals(kind)
                ? Materialized.as(Stores.inMemoryKeyValueStore("counts"))
                : Materialized.as("counts");
        return store.withKeySerde(Serdes.String()).withValueSerde(Serdes.Long());
    }
}
