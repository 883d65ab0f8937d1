-- Users, roles, sessions, invites, signing keys and the audit trail. Times are UTC milliseconds.

-- What people's data of a tenant is sealed with, itself sealed with the master key. master: fingerprint of that key.
CREATE TABLE data_keys (
    tenant_id TEXT NOT NULL PRIMARY KEY REFERENCES tenants (name),
    wrapped TEXT NOT NULL,
    master TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

-- email, name and phone are sealed; email_index: keyed hash of the normalised address, by which it is found.
-- password_hash: Argon2id in PHC form; NULL: nobody logs in with a password. state: ACTIVE | DISABLED.
CREATE TABLE users (
    tenant_id TEXT NOT NULL REFERENCES tenants (name),
    id TEXT NOT NULL,
    email_index TEXT NOT NULL,
    email TEXT NOT NULL,
    name TEXT,
    phone TEXT,
    password_hash TEXT,
    state TEXT NOT NULL,
    preferences TEXT NOT NULL,
    failed_logins BIGINT NOT NULL,
    locked_until BIGINT,
    last_login_at BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE UNIQUE INDEX users_by_email ON users (tenant_id, email_index);

-- Which account of another provider (OIDC) is which user. subject_index: keyed hash of issuer and subject.
CREATE TABLE linked_logins (
    tenant_id TEXT NOT NULL,
    subject_index TEXT NOT NULL,
    user_id TEXT NOT NULL,
    issuer TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, subject_index),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

-- A tenant's own roles; owner, admin, editor and viewer are the program's. permissions: a JSON list.
CREATE TABLE roles (
    tenant_id TEXT NOT NULL REFERENCES tenants (name),
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    permissions TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE user_roles (
    tenant_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    role TEXT NOT NULL,
    granted_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, user_id, role),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

-- A login and all refresh tokens that came of it, one after the other.
CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    ended_at BIGINT,
    end_reason TEXT,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

CREATE INDEX sessions_by_user ON sessions (tenant_id, user_id);

-- token_hash: SHA-256 in hexadecimal digits. used_at: when it was exchanged for its successor.
CREATE TABLE refresh_tokens (
    token_hash TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    created_at BIGINT NOT NULL,
    used_at BIGINT
);

CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id);

-- roles: a JSON list of what whoever takes the invite becomes.
CREATE TABLE invites (
    token_hash TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (name),
    roles TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT
);

-- private_key is sealed with the master key. A key signs until signs_until and is believed until verifies_until.
CREATE TABLE signing_keys (
    id TEXT NOT NULL PRIMARY KEY,
    algorithm TEXT NOT NULL,
    public_key TEXT NOT NULL,
    private_key TEXT NOT NULL,
    master TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    signs_until BIGINT NOT NULL,
    verifies_until BIGINT NOT NULL
);

-- Who did what to whom; ids only, never an address or a secret of a person. succeeded: 0 | 1.
CREATE TABLE audit_events (
    tenant_id TEXT NOT NULL REFERENCES tenants (name),
    id TEXT NOT NULL,
    happened_at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT,
    succeeded BIGINT NOT NULL,
    address TEXT,
    request_id TEXT,
    detail TEXT,
    PRIMARY KEY (tenant_id, id)
);

CREATE INDEX audit_events_by_time ON audit_events (happened_at);

-- prefix: the beginning of the key, to recognise it by. permissions: a JSON list beside the scopes. user_id: whose key it
-- is; it can never do more than that user. models: a JSON list of the models that it may call; NULL: all.
-- budget_micros: millionths of a US dollar a budget_window (day | week | month | total); NULL: no limit.
ALTER TABLE api_keys ADD COLUMN prefix TEXT;
ALTER TABLE api_keys ADD COLUMN permissions TEXT;
ALTER TABLE api_keys ADD COLUMN user_id TEXT;
ALTER TABLE api_keys ADD COLUMN models TEXT;
ALTER TABLE api_keys ADD COLUMN budget_micros BIGINT;
ALTER TABLE api_keys ADD COLUMN budget_window TEXT;
ALTER TABLE api_keys ADD COLUMN expires_at BIGINT;
