-- Row-level security: a statement sees and writes the rows of the tenant in the setting `va.tenant`, every tenant's where that
-- is `*`, and none where it is not set. See src/store/postgres.rs. SQLite has nothing like it.
--
-- Forced, because the program owns the tables. A later table with a tenant needs its policy in its own migration; a test
-- looks for tables without one.

DO $$
DECLARE
    place TEXT[];
BEGIN
    -- Table, and the column with its tenant.
    FOREACH place SLICE 1 IN ARRAY ARRAY[
        ['tenants', 'name'],
        ['collections', 'tenant_id'],
        ['documents', 'tenant_id'],
        ['document_versions', 'tenant_id'],
        ['topics', 'tenant_id'],
        ['pipelines', 'tenant_id'],
        ['pipeline_versions', 'tenant_id'],
        ['models', 'tenant_id'],
        ['api_keys', 'tenant_id'],
        ['settings', 'tenant_id'],
        ['split_states', 'tenant_id'],
        ['splits', 'tenant_id'],
        ['split_documents', 'tenant_id'],
        ['split_dead', 'tenant_id'],
        ['data_keys', 'tenant_id'],
        ['users', 'tenant_id'],
        ['linked_logins', 'tenant_id'],
        ['roles', 'tenant_id'],
        ['user_roles', 'tenant_id'],
        ['sessions', 'tenant_id'],
        ['invites', 'tenant_id'],
        ['audit_events', 'tenant_id'],
        ['conversations', 'tenant_id'],
        ['messages', 'tenant_id'],
        ['outbox', 'tenant_id']
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', place[1]);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', place[1]);
        -- Without WITH CHECK, what may be written is what may be seen.
        EXECUTE format(
            'CREATE POLICY of_tenant ON %I USING (%I = current_setting(''va.tenant'', true)'
            ' OR current_setting(''va.tenant'', true) = ''*'')',
            place[1], place[2]
        );
    END LOOP;

    -- A refresh token is its session's; the policy of sessions holds inside this one.
    ALTER TABLE refresh_tokens ENABLE ROW LEVEL SECURITY;
    ALTER TABLE refresh_tokens FORCE ROW LEVEL SECURITY;
    CREATE POLICY of_tenant ON refresh_tokens USING (
        current_setting('va.tenant', true) = '*'
        OR EXISTS (SELECT FROM sessions WHERE sessions.id = refresh_tokens.session_id)
    );
END
$$;
