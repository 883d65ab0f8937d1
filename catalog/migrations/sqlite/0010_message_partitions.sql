-- What conversations know beside their messages. A file needs no partitions: its messages stay one table.

-- last_seq: number of the last message, also when that message is gone. instructions: what its owner wants of the answers.
-- summary: what was said up to the message summary_seq, in a model's words.
ALTER TABLE conversations ADD COLUMN last_seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN instructions TEXT;
ALTER TABLE conversations ADD COLUMN summary TEXT;
ALTER TABLE conversations ADD COLUMN summary_seq BIGINT;

-- No message is older than its conversation.
UPDATE conversations SET
    last_seq = (SELECT MAX(m.seq) FROM messages m WHERE m.tenant_id = conversations.tenant_id AND m.conversation_id = conversations.id),
    created_at = MIN(created_at,
        (SELECT MIN(m.created_at) FROM messages m WHERE m.tenant_id = conversations.tenant_id AND m.conversation_id = conversations.id))
WHERE EXISTS (SELECT 1 FROM messages m WHERE m.tenant_id = conversations.tenant_id AND m.conversation_id = conversations.id);

-- Of a question.
ALTER TABLE messages ADD COLUMN intent TEXT;
ALTER TABLE messages ADD COLUMN sentiment TEXT;

-- For removing what is older than is kept.
CREATE INDEX messages_by_time ON messages (created_at);
