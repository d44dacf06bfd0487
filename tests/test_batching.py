from frostline import batching, protos
from frostline.serving import batching as serving_batching


def test_the_text_is_what_tensorflow_serving_reads():
    text = batching.parameters((1, 4, 8), timeout_micros=500, threads=3)
    found = protos.parse(text, protos.BatchingParameters, "text")
    assert list(found.allowed_batch_sizes) == [1, 4, 8] and found.max_execution_batch_size.value == 8
    largest_warm_up = batching.ALLOWED_SIZES[-1]  # whose requests come through the same batching
    assert found.max_batch_size.value == largest_warm_up and found.enable_large_batch_splitting.value
    read = serving_batching.parameters(found)
    assert (read.max_batch_size, read.largest, read.allowed) == (largest_warm_up, 8, (1, 4, 8))
    assert found.batch_timeout_micros.value == 500 and found.num_batch_threads.value == 3
    assert found.max_enqueued_batches.value == batching.MAX_ENQUEUED


def test_a_model_leaves_threads_to_the_server():
    found = protos.parse(batching.parameters(), protos.BatchingParameters, "text")
    assert not found.HasField("num_batch_threads")
    assert list(found.allowed_batch_sizes) == list(batching.ALLOWED_SIZES) == sorted(batching.ALLOWED_SIZES)
    assert found.max_batch_size.value == batching.ALLOWED_SIZES[-1] and not found.enable_large_batch_splitting.value
