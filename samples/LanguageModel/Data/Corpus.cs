using System.Security.Cryptography;
using System.Text;

namespace LanguageModel.Data;

/// <summary>A text as tokens, its last twentieth held out for validation.</summary>
internal sealed class Corpus
{
    private const double ValidationShare = 0.05;

    private Corpus(ITextTokenizer tokenizer, string source, string text)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        Source = source;
        Bytes = bytes.Length;
        Entropy = Data.Entropy.OrderZero(bytes);
        Fingerprint = Convert.ToHexStringLower(SHA256.HashData(bytes));
        Tokenizer = tokenizer;

        int[] tokens = tokenizer.Encode(text);
        int training = (int)(tokens.Length * (1 - ValidationShare));
        Training = tokens.AsMemory(0, training);
        Validation = tokens.AsMemory(training);
    }

    /// <summary>Where the text comes from, for people.</summary>
    public string Source { get; }

    public ITextTokenizer Tokenizer { get; }

    /// <summary>The text's length in UTF-8.</summary>
    public long Bytes { get; }

    /// <summary>Order-0 entropy of the bytes, nats per byte.</summary>
    public double Entropy { get; }

    /// <summary>Tells one text from another, so that a run is not continued on other data.</summary>
    public string Fingerprint { get; }

    public ReadOnlyMemory<int> Training { get; }

    public ReadOnlyMemory<int> Validation { get; }

    /// <summary>The text of a file, of a folder's files in order of name, or of the .NET documentation.</summary>
    /// <exception cref="UserError">There is no text there.</exception>
    public static Corpus Load(string? path, ITextTokenizer tokenizer)
    {
        if (path is not null)
            return new Corpus(tokenizer, path, ReadText(path));

        IReadOnlyList<string> files = DotNetDocumentation.FindFiles();
        if (files.Count == 0)
        {
            throw new UserError("No .NET SDK with reference packs was found to take text from "
                + "(DOTNET_ROOT, the running host and the PATH were searched): name a text with --data FILE-OR-FOLDER.");
        }

        return new Corpus(tokenizer, $"the documentation of .NET in {files.Count} files",
            string.Concat(DotNetDocumentation.Read(files)));
    }

    public static Corpus FromText(string text, ITextTokenizer tokenizer) => new(tokenizer, "text", text);

    /// <exception cref="UserError">The path does not exist, or holds no text.</exception>
    public static string ReadText(string path)
    {
        try
        {
            string text;
            if (Directory.Exists(path))
            {
                text = string.Concat(Directory.EnumerateFiles(path, "*", SearchOption.AllDirectories)
                    .Order(StringComparer.Ordinal)
                    .Select(File.ReadAllText));
            }
            else if (File.Exists(path))
            {
                text = File.ReadAllText(path);
            }
            else
            {
                throw new UserError($"--data {path}: no such file or folder.");
            }

            return text.Length > 0 ? text : throw new UserError($"--data {path}: there is no text in it.");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new UserError($"--data {path}: {e.Message}");
        }
    }

    /// <exception cref="UserError">Not even one sequence for training and one for validation.</exception>
    public void RequireSequences(int length)
    {
        int needed = (int)Math.Ceiling((length + 1) / ValidationShare);
        if (Validation.Length < length)
        {
            throw new UserError($"The text has {Training.Length + Validation.Length:N0} tokens, too few for --seq {length}: "
                + $"use {needed:N0} tokens or more, or a shorter --seq.");
        }
    }
}
