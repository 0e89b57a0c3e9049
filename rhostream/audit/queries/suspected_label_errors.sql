-- Suspected label errors: the IL model is sure of another class than the label.
SELECT shard, ordinal, key, label, predicted, round(il, 3) AS il
FROM il WHERE status = 'ok' AND predicted <> label AND isfinite(il) ORDER BY il.il DESC, shard, ordinal LIMIT 20
