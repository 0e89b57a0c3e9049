"""A run's decisions on a local page: columns in memory, linked charts, samples, and a server for one browser.

    live (commits) > rows (columns) > crossfilter (counts) \
                                    > find (rows)           > server > page
                        pictures > samples, ledger > questions /
"""
