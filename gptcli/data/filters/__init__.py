"""Filters on documents before training: pure functions, and middle files that shards of a corpus make and merge.

documents   inputs -> documents with their records
workers     blocks of documents through several processes, in order
words       texts -> hashes of their words, shingles and passages
sketch      what is kept of a shard to compare it with others: sign
near        sketches -> pairs of documents that are alike
passages    sketches -> long passages that occurred before
group       sketches -> a drop list for each shard
drops       a drop list and its shard -> the documents that stay: apply
pages       HTML and WARC -> text: extract
languages, rules, pii, overlap, canaries   what their names say
"""
