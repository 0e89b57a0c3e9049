"""`rhostream init`: what lies in a folder or in shards, and the commands for exactly that.

places > look (lists, counts, a sample) > judge (a cross-fit) > figures with intervals > plan > text, files
"""
