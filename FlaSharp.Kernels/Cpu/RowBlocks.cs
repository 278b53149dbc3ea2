namespace FlaSharp.Kernels.Cpu;

/// <summary>
/// The rows of a [rows, width] matrix in blocks, one per piece of parallel work. The blocks follow from the sizes alone, so that
/// a sum over rows is added in the same order on any number of cores.
/// </summary>
internal readonly unsafe struct RowBlocks
{
    private const long MinElements = 16 * 1024; // below it, handing the work to another core costs more than it saves
    private const long MaxBlocks = 64;          // bounds the memory of the partial sums

    private readonly long _rows, _width, _rowsPerBlock;

    public RowBlocks(long rows, long width)
    {
        (_rows, _width) = (rows, width);
        _rowsPerBlock = Math.Max((rows + MaxBlocks - 1) / MaxBlocks, Math.Max(1, MinElements / width));
        Count = (int)((rows + _rowsPerBlock - 1) / _rowsPerBlock);
    }

    public int Count { get; }

    public (long first, long end) this[int block] =>
        (block * _rowsPerBlock, Math.Min(_rows, (block + 1) * _rowsPerBlock));

    /// <summary>Runs <paramref name="body"/> on every block of rows: (first row, end row).</summary>
    public void ForEach(Action<long, long> body)
    {
        var blocks = this;
        CpuParallel.For(Count, block => body(blocks[block].first, blocks[block].end));
    }

    /// <summary>
    /// Runs <paramref name="body"/> on every block with a zeroed row of its own to sum into, and writes the total of these
    /// rows, added in the order of the blocks, to <paramref name="sum"/>.
    /// </summary>
    public void ForEachWithSum(float* sum, RowSum body)
    {
        var blocks = this;
        var width = checked((int)_width);
        var partials = new float[(long)Count * width];
        fixed (float* pinned = partials)
        {
            var first = pinned; // a pinned local cannot be captured
            CpuParallel.For(Count, block => body(blocks[block].first, blocks[block].end, first + (long)block * width));
            for (var i = 0; i < width; i++)
            {
                var total = 0f;
                for (var block = 0; block < Count; block++)
                    total += first[(long)block * width + i];
                sum[i] = total;
            }
        }
    }

    /// <summary>Handles rows first..end - 1 and adds to <paramref name="sum"/>, a row of its own.</summary>
    public delegate void RowSum(long first, long end, float* sum);
}
