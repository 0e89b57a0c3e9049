"""Out of the ledger: lists, tables, samples and shards in the forms that other tools read.

runs > selection (one SELECT) > rows, or samples each once in the order of shards > one form > an account
"""

from rhostream.audit.export.job import FORMS, Exported, export

__all__ = ["FORMS", "Exported", "export"]
