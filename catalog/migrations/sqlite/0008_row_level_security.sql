-- Row-level security is PostgreSQL's; SQLite has nothing like it, and the statements name the tenant. The number is taken here
-- too, so that both databases are of the same version.

SELECT 1;
