-- Conversations, their messages, and what of them is still to be written to the log. Times are UTC milliseconds.

-- owner: the user or key that it belongs to; nobody else sees it. folded: the title in lower case, for searching.
CREATE TABLE conversations (
    tenant_id TEXT NOT NULL REFERENCES tenants (name),
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    folded TEXT NOT NULL,
    collection TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE INDEX conversations_by_owner ON conversations (tenant_id, owner, id);

-- role: user | assistant. state: complete | writing | partial, the last with a reason. folded: the content in lower case.
-- citations and usage: JSON. feedback: up | down.
CREATE TABLE messages (
    tenant_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    id TEXT NOT NULL,
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
    PRIMARY KEY (tenant_id, conversation_id, seq),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id)
);

CREATE UNIQUE INDEX messages_by_id ON messages (tenant_id, id);

CREATE INDEX messages_by_state ON messages (state, created_at);

-- Events that wait for the log; each is written in the transaction of what it tells, and goes when the log has it.
CREATE TABLE outbox (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    topic TEXT NOT NULL,
    event TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
