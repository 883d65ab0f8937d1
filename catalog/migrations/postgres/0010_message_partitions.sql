-- Messages in partitions, one a month (UTC) of their creation, so that a month can go at once and the newest stay small;
-- and what conversations know beside their messages. Partitions are made ahead, and the default one is emptied, by a chore
-- (`store/message_months.rs`); the default one takes whatever has no month yet, so that no insert fails.

-- Policies of tenants would hide rows from what is moved here: their owner passes them meanwhile, and where it does not, an
-- error ends the migration instead of a table with less in it.
SET LOCAL row_security = off;
ALTER TABLE conversations NO FORCE ROW LEVEL SECURITY;
ALTER TABLE messages NO FORCE ROW LEVEL SECURITY;

-- last_seq: number of the last message, also when that message is gone. instructions: what its owner wants of the answers.
-- summary: what was said up to the message summary_seq, in a model's words.
ALTER TABLE conversations ADD COLUMN last_seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN instructions TEXT;
ALTER TABLE conversations ADD COLUMN summary TEXT;
ALTER TABLE conversations ADD COLUMN summary_seq BIGINT;

-- No message is older than its conversation: by that, older partitions need not be looked into.
UPDATE conversations c SET last_seq = m.last, created_at = LEAST(c.created_at, m.first)
FROM (SELECT tenant_id, conversation_id, MAX(seq) AS last, MIN(created_at) AS first FROM messages GROUP BY 1, 2) m
WHERE m.tenant_id = c.tenant_id AND m.conversation_id = c.id;

ALTER TABLE messages RENAME TO messages_unpartitioned;
ALTER INDEX messages_pkey RENAME TO messages_unpartitioned_pkey;
DROP INDEX messages_by_id;
DROP INDEX messages_by_state;

-- As before, and intent and sentiment of a question. That `seq` and `id` are unique without the time is seen to by whoever
-- gives them (`begin_answer`): an index over partitions has to hold what they are cut by.
CREATE TABLE messages (
    tenant_id TEXT COLLATE "C" NOT NULL,
    conversation_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    folded TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    mode TEXT,
    citations TEXT NOT NULL,
    usage TEXT,
    feedback TEXT,
    feedback_comment TEXT,
    created_at BIGINT NOT NULL,
    intent TEXT,
    sentiment TEXT,
    PRIMARY KEY (tenant_id, conversation_id, seq, created_at),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id)
) PARTITION BY RANGE (created_at);

CREATE TABLE messages_default PARTITION OF messages DEFAULT;

CREATE INDEX messages_by_id ON messages (tenant_id, id);

CREATE INDEX messages_by_state ON messages (state, created_at);

-- The months that there are rows of, but for times that nobody can mean.
DO $$
DECLARE
    month TIMESTAMP;
BEGIN
    FOR month IN
        SELECT DISTINCT date_trunc('month', to_timestamp(created_at / 1000) AT TIME ZONE 'UTC')
        FROM messages_unpartitioned WHERE created_at BETWEEN 0 AND 4102444799999 ORDER BY 1
    LOOP
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF messages FOR VALUES FROM (%s) TO (%s)',
            'messages_' || to_char(month, 'YYYY_MM'),
            EXTRACT(EPOCH FROM month)::BIGINT * 1000,
            EXTRACT(EPOCH FROM month + INTERVAL '1 month')::BIGINT * 1000);
    END LOOP;
END $$;

INSERT INTO messages (tenant_id, conversation_id, seq, id, role, content, folded, state, reason, mode, citations, usage,
    feedback, feedback_comment, created_at)
SELECT tenant_id, conversation_id, seq, id, role, content, folded, state, reason, mode, citations, usage,
    feedback, feedback_comment, created_at
FROM messages_unpartitioned;

DROP TABLE messages_unpartitioned;

ALTER TABLE conversations FORCE ROW LEVEL SECURITY;
-- The policy of 0008, on what statements name and, for whoever names one of them, on the partitions.
DO $$
DECLARE
    place TEXT;
BEGIN
    FOR place IN
        SELECT 'messages' UNION ALL
        SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'messages'::regclass
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', place);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', place);
        EXECUTE format(
            'CREATE POLICY of_tenant ON %I USING (tenant_id = current_setting(''va.tenant'', true)'
            ' OR current_setting(''va.tenant'', true) = ''*'')',
            place
        );
    END LOOP;
END
$$;
