"""Runs migrations on the connection that `app.database.migrate` hands over, one transaction each."""

from alembic import context

from app.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=True,
    compare_type=True,
)
with context.begin_transaction():
    # A migration that cannot get its lock gives up rather than stop everybody behind it.
    context.get_context().connection.exec_driver_sql("SET lock_timeout = '10s'")  # type: ignore[union-attr]
    context.run_migrations()
