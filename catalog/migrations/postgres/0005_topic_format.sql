-- The format of a topic's messages as JSON; null: the topic holds batches of the platform. Until now wire_format said nothing
-- about what is stored, so nothing is read from it; it is the format's name.
ALTER TABLE topics ADD COLUMN format TEXT;
