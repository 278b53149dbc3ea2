using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using System.Text;
using Microsoft.Build.Framework;
using Microsoft.Build.Utilities;

namespace FlaSharp.Build;

/// <summary>
/// Copies files; in 64-bit little-endian ELF files among them one needed symbol version is marked weak (VER_FLG_WEAK), so
/// that the dynamic loader accepts a library that lacks it. Only right for a version from which no symbol is called.
/// </summary>
public sealed class WeakenSymbolVersion : Task
{
    private const int SectionHeaderTypeVersionNeeds = 0x6ffffffe; // SHT_GNU_verneed
    private const ushort WeakFlag = 2;                            // VER_FLG_WEAK

    [Required] public ITaskItem[] Files { get; set; }

    /// <summary>The version to mark, as GLIBCXX_3.4.32.</summary>
    [Required] public string Version { get; set; }

    /// <summary>The library that should define it, as libstdc++.so.6.</summary>
    [Required] public string Library { get; set; }

    /// <summary>Only copy where this machine's <see cref="Library"/> defines the version.</summary>
    public bool OnlyIfMissing { get; set; }

    /// <summary>Where the copies go, under the names of the files.</summary>
    [Required] public string OutputFolder { get; set; }

    public override bool Execute()
    {
        var weaken = !OnlyIfMissing || !HostDefinesVersion();
        Directory.CreateDirectory(OutputFolder);
        foreach (var file in Files)
        {
            var image = File.ReadAllBytes(file.ItemSpec);
            var weakened = weaken && MarkWeak(image); // false too for another TorchSharp, which does not need the version
            var path = Path.Combine(OutputFolder, Path.GetFileName(file.ItemSpec));
            var temporary = path + "." + Guid.NewGuid().ToString("N");
            File.WriteAllBytes(temporary, image);
            File.Delete(path); // the output folder may hold a hard link to it: replaced, never written to
            File.Move(temporary, path);
            Log.LogMessage(MessageImportance.Low, weakened ? "FlaSharp: marked {0} weak in {1}" : "FlaSharp: {0} left as it is in {1}", Version, path);
        }
        return !Log.HasLoggedErrors;
    }

    /// <summary>Version names stand in the string table of the library, each ended by a zero.</summary>
    private bool HostDefinesVersion()
    {
        var latin1 = Encoding.GetEncoding("iso-8859-1"); // a character for every byte
        var library = HostLibraryFolders().Select(folder => Path.Combine(folder, Library)).FirstOrDefault(File.Exists);
        return library != null
            && latin1.GetString(File.ReadAllBytes(library)).IndexOf(Version + "\0", StringComparison.Ordinal) >= 0;
    }

    private static IEnumerable<string> HostLibraryFolders()
    {
        var architecture = RuntimeInformation.OSArchitecture == Architecture.Arm64 ? "aarch64" : "x86_64";
        var fromEnvironment = Environment.GetEnvironmentVariable("LD_LIBRARY_PATH") ?? "";
        return fromEnvironment.Split(new[] { ':' }, StringSplitOptions.RemoveEmptyEntries).Concat(new[]
        {
            $"/lib/{architecture}-linux-gnu", $"/usr/lib/{architecture}-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib",
        });
    }

    /// <summary>Sets the flag in the image; false if the file does not need the version.</summary>
    private bool MarkWeak(byte[] image)
    {
        if (image.Length < 64 || BitConverter.ToUInt32(image, 0) != 0x464c457f || image[4] != 2 || image[5] != 1)
            return false; // not a 64-bit little-endian ELF file

        var sectionTable = checked((int)BitConverter.ToInt64(image, 0x28));
        var sectionSize = BitConverter.ToUInt16(image, 0x3a);
        var sectionCount = BitConverter.ToUInt16(image, 0x3c);
        for (var i = 0; i < sectionCount; i++)
        {
            var section = sectionTable + i * sectionSize;
            if (BitConverter.ToUInt32(image, section + 4) != SectionHeaderTypeVersionNeeds)
                continue;
            var needs = checked((int)BitConverter.ToInt64(image, section + 0x18));
            var strings = sectionTable + BitConverter.ToInt32(image, section + 0x28) * sectionSize;
            return MarkWeak(image, needs, checked((int)BitConverter.ToInt64(image, strings + 0x18)));
        }
        return false;
    }

    /// <summary>Walks the list of libraries (Verneed) and under each the list of versions (Vernaux).</summary>
    private bool MarkWeak(byte[] image, int library, int strings)
    {
        while (true)
        {
            var entry = library + BitConverter.ToInt32(image, library + 8);
            for (var left = BitConverter.ToUInt16(image, library + 2); left > 0; left--)
            {
                if (NameAt(image, strings + BitConverter.ToInt32(image, entry + 8)) == Version)
                {
                    image[entry + 4] |= (byte)WeakFlag;
                    return true;
                }
                entry += BitConverter.ToInt32(image, entry + 12);
            }
            var next = BitConverter.ToInt32(image, library + 12);
            if (next == 0)
                return false;
            library += next;
        }
    }

    private static string NameAt(byte[] image, int offset) =>
        Encoding.ASCII.GetString(image, offset, Array.IndexOf(image, (byte)0, offset) - offset);
}
