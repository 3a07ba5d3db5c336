-- Run once, when PostgreSQL makes its data folder: whom the programs are. They own their database and are nothing
-- else; a superuser could run commands and read files where PostgreSQL runs.
\getenv password POSTGRES_PASSWORD
CREATE ROLE finetuned LOGIN PASSWORD :'password';
CREATE DATABASE finetuned OWNER finetuned;
-- Who is inside of the container still gets in, over its socket.
ALTER ROLE postgres PASSWORD NULL;
