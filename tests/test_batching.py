from frostline import batching, protos


def test_the_text_is_what_tensorflow_serving_reads():
    text = batching.parameters((1, 4, 8), timeout_micros=500, threads=3)
    found = protos.parse(text, protos.BatchingParameters, "text")
    assert list(found.allowed_batch_sizes) == [1, 4, 8] and found.max_batch_size.value == 8
    assert found.batch_timeout_micros.value == 500 and found.num_batch_threads.value == 3
    assert found.max_enqueued_batches.value == batching.MAX_ENQUEUED


def test_a_model_leaves_threads_to_the_server():
    found = protos.parse(batching.parameters(), protos.BatchingParameters, "text")
    assert not found.HasField("num_batch_threads")
    assert list(found.allowed_batch_sizes) == list(batching.ALLOWED_SIZES) == sorted(batching.ALLOWED_SIZES)
    assert found.max_batch_size.value == batching.ALLOWED_SIZES[-1]
