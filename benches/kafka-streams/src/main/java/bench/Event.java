package bench;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.StreamWriteFeature;
import com.fasterxml.jackson.core.util.ByteArrayBuilder;
import java.io.IOException;
import java.io.UncheckedIOException;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;

/** An event, read and written token by token: the fastest that Jackson can do. */
final class Event {
    long id;
    String customer;
    double amount;
    long quantity;
    String country;
    String channel;
    String note;
    long createdUs;
    double total;

    private static final JsonFactory JSON = JsonFactory.builder()
            .enable(StreamReadFeature.USE_FAST_DOUBLE_PARSER)
            .enable(StreamWriteFeature.USE_FAST_DOUBLE_WRITER)
            .build();

    static Serde<Event> serde() {
        Serializer<Event> write = (topic, event) -> event == null ? null : event.json();
        Deserializer<Event> read = (topic, bytes) -> bytes == null ? null : parse(bytes);
        return Serdes.serdeFrom(write, read);
    }

    private static Event parse(byte[] bytes) {
        Event event = new Event();
        try (JsonParser parser = JSON.createParser(bytes)) {
            if (parser.nextToken() != JsonToken.START_OBJECT) {
                throw new IOException("not an object");
            }
            for (String name = parser.nextFieldName(); name != null; name = parser.nextFieldName()) {
                parser.nextToken();
                switch (name) {
                    case "id" -> event.id = parser.getLongValue();
                    case "customer" -> event.customer = parser.getText();
                    case "amount" -> event.amount = parser.getDoubleValue();
                    case "quantity" -> event.quantity = parser.getLongValue();
                    case "country" -> event.country = parser.getText();
                    case "channel" -> event.channel = parser.getText();
                    case "note" -> event.note = parser.getText();
                    case "created_us" -> event.createdUs = parser.getLongValue();
                    default -> parser.skipChildren();
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return event;
    }

    private byte[] json() {
        ByteArrayBuilder out = new ByteArrayBuilder(256);
        try (JsonGenerator json = JSON.createGenerator(out)) {
            json.writeStartObject();
            json.writeNumberField("id", id);
            json.writeStringField("customer", customer);
            json.writeNumberField("amount", amount);
            json.writeNumberField("quantity", quantity);
            json.writeStringField("country", country);
            json.writeStringField("channel", channel);
            json.writeStringField("note", note);
            json.writeNumberField("created_us", createdUs);
            json.writeNumberField("total", total);
            json.writeEndObject();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return out.toByteArray();
    }

    /** What a count is written as, the same text as ours. */
    static Serde<Counted> countedSerde() {
        Serializer<Counted> write = (topic, counted) -> {
            ByteArrayBuilder out = new ByteArrayBuilder(64);
            try (JsonGenerator json = JSON.createGenerator(out)) {
                json.writeStartObject();
                json.writeStringField("customer", counted.customer());
                json.writeNumberField("orders", counted.orders());
                json.writeEndObject();
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
            return out.toByteArray();
        };
        Deserializer<Counted> read = (topic, bytes) -> {
            throw new UnsupportedOperationException("counts are only written");
        };
        return Serdes.serdeFrom(write, read);
    }

    record Counted(String customer, long orders) {}
}
